"""`loader up` on a terminal and in a pipe: its lines about arriving events."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

from loader.settings import Settings
from loader.transform.dbt import TableFilled
from loader.transform.scheduler import _count_events
from tests.conftest import loader_here
from tests.support.collector_process import environment, free_port
from tests.support.waiting import wait_until


def post(port: int, key: str, body: bytes) -> int:
    """Send one batch, and return the status of the answer."""
    headers = {"Authorization": "Basic " + b64encode(f"{key}:".encode()).decode()}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/v1/batch", data=body, headers=headers)
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_d6_up_logs_events_refusals_and_unknown_keys_in_plain_lines(served_settings: Settings, tmp_path: Path) -> None:
    """An event counts once, however many tables have it. Every refusal has a line."""
    key = loader_here(served_settings)("key", "add").stdout.strip()
    names = ["Email Opened", "Email Opened", "Email Delivered", "Email Delivered", "SMS Sent", "SMS Sent"]
    calls = [{"type": "track", "event": name, "userId": "u", "messageId": str(n)} for n, name in enumerate(names)]
    bad = [{"type": "track", "userId": "u"}] * 5
    log = tmp_path / "up.log"
    port = free_port()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "loader", "up", f"--port={port}", "--every=0.2s"],
            env=environment(served_settings, ()),
            stderr=stream,
        )
        try:
            wait_until(lambda: "collector is ready" in log.read_text(), "the collector")
            assert post(port, key, json.dumps({"batch": calls + bad}).encode()) == 200
            for _ in range(3):
                assert post(port, "unknown", json.dumps({"batch": calls}).encode()) == 401
            wait_until(lambda: "in 4 tables" in log.read_text(), "the transform")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    told = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "6 events in 4 tables" in told
    refused = [re.fullmatch(r"(\d+) messages? refused", line) for line in told]
    assert sum(int(found[1]) for found in refused if found) == 5
    unknown = [re.fullmatch(r"(\d+) requests? with an unknown key", line) for line in told]
    assert sum(int(found[1]) for found in unknown if found) == 3


def test_d6_events_are_counted_once_for_each_source() -> None:
    """If a run does not fill tracks, the rows of the other tables are counted."""
    grown = [
        TableFilled("iterable", "tracks", rows=6),
        TableFilled("iterable", "email_opened", rows=4),
        TableFilled("shop", "order_placed", rows=2),
        TableFilled("shop", "order_sent", rows=1),
    ]
    assert _count_events(grown) == 9
