"""The examples of docs/destinations.md, as typed, from the first line to the last."""

import re
import shlex
from pathlib import Path

import psycopg
import pytest

from loader.raw.destinations import find_destination, list_destinations, read_progress
from tests.conftest import Loader
from tests.support.deliveries import change_settings, fill_tracks, land_calls
from tests.support.folders import ROOT
from tests.support.receivers import Receiver, refusing

EXAMPLE = re.compile(r"^ {4}(loader|export) (.+?)(?: {2,}#.*)?$", re.MULTILINE)


def test_the_examples_of_the_page_work_in_their_order(
    run_loader: Loader,
    connection: psycopg.Connection,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each destination keeps its settings, but for the address or the folder, which are those of the test."""
    # The page shows the seventh dead letter.
    receiver.answer = refusing(lambda call: bool(call.get("properties", {}).get("bad")))
    land_calls(
        connection,
        *({"messageId": f"m{n}", "userId": "u", "properties": {"bad": n < 7, "plan": "pro"}} for n in range(20)),
    )
    fill_tracks(connection)
    examples = EXAMPLE.findall((ROOT / "docs" / "destinations.md").read_text(encoding="utf-8"))
    assert len(examples) > 20
    for program, text in examples:
        if program == "export":
            name, _, value = text.partition("=")
            monkeypatch.setenv(name, value.replace("…", "c2VjcmV0"))
            continue
        words = shlex.split(text)
        if words == ["forward"]:
            words = ["forward", "--once"]
        done = run_loader(*words, stdin=b"y\n")
        assert done.returncode == 0, (text, done.stderr)
        if words[:2] == ["destination", "add"]:
            found = find_destination(connection, words[2])
            change_settings(connection, found, url=receiver.url, folder=str(tmp_path))
            # On the page, events land after a destination is added. Here, the events landed before.
            connection.execute(
                "update raw.delivery_cursors set start_snapshot = '1:1:', from_snapshot = '1:1:'"
                " where destination_id = %s",
                [found.id],
            )
    assert {each.name for each in list_destinations(connection)} == {"cdp", "eu", "ops", "bulk", "lake", "crm"}
    assert run_loader("forward", "--once").returncode == 0
    assert {each.destination for each in read_progress(connection) if each.replay} == {"cdp"}
