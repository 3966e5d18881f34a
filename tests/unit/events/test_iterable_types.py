"""The names of Iterable's kinds of events, and the files that hold them."""

import csv

import pytest

from loader.events.iterable_types import BOOLEANS, DOCUMENTS, KINDS, NUMBERS, SEGMENT_EVENTS, kind_of_file, known_kind
from tests.support.folders import DATA

with (DATA / "native_event_map.csv").open(encoding="utf-8", newline="") as file:
    MAP = list(csv.DictReader(file))


def test_every_kind_of_the_map_is_known() -> None:
    """Each kind is known by its export's name, and by Segment's name if it has one. Profiles are not events."""
    events = [row for row in MAP if row["export_data_type"] != "user"]
    assert set(KINDS) == {row["export_data_type"] for row in events}
    assert {row["export_data_type"]: row["segment_event_name"] for row in events if row["segment_event_name"]} == (
        SEGMENT_EVENTS
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("emailSend", "emailSend"),
        ("EMAILSEND", "emailSend"),
        ("blastSend", "emailSend"),
        ("triggeredSend", "emailSend"),
        ("emailUnsubscribe", "emailUnSubscribe"),
        ("anonSession", "unknownSession"),
        ("somethingNew", None),
        ("user", None),
    ],
)
def test_a_kind_is_known_however_it_is_spelled(name: str, kind: str | None) -> None:
    """Upper and lower case are equal, and some kinds have two names."""
    assert known_kind(name) == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("smsBounce.csv", "smsBounce"),
        ("SMSBOUNCE.CSV", "smsBounce"),
        ("emailSend-2026-01.ndjson.gz", "emailSend"),
        ("export_emailSendSkip_1.json", "emailSendSkip"),
        ("emailSend/part-1.json", "emailSend"),
        ("/data/emailSend/2026/03/part-1.json", "emailSend"),
        ("emailOpen/emailClick.csv", "emailClick"),
        ("emailSend+emailSendSkip.csv", "emailSendSkip"),
        ("emailunsubscribe.parquet", "emailUnSubscribe"),
        ("/home/users/maria/part.csv", None),
        ("users.csv", "users"),
        ("user-2026.csv", "user"),
        ("repurchased.csv", None),
        ("-", None),
    ],
)
def test_the_name_of_a_file_tells_its_kind_of_events(path: str, kind: str | None) -> None:
    """The longest kind in the innermost name counts, and only if the kind is a separate word."""
    assert kind_of_file(path) == kind


def test_the_types_are_those_of_the_catalog() -> None:
    """A property is a number, a boolean or a document wherever the catalog has that type."""
    types = {"bigint": set(), "double": set(), "boolean": set(), "json": set()}
    with (DATA / "property_catalog.csv").open(encoding="utf-8", newline="") as catalog:
        for row in csv.DictReader(catalog):
            types.get(row["type"], set()).add(row["property_json_name"])
    assert types["bigint"] | types["double"] == NUMBERS
    assert types["boolean"] == BOOLEANS
    assert types["json"] == DOCUMENTS
