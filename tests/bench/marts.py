"""The marts: the cost of an increment by the length of the history, and their share of a transform."""

import json
from datetime import date
from pathlib import Path

from loader.sample.events import generate_sample_events
from tests.bench.ground import Ground, report
from tests.bench.splitting import compare_histories, prepare, transform_seconds

_LAST_DAY = date(2026, 5, 3)
# A recipient of the sample has about 12 events.
_EVENTS_EACH = 12.3
_SMALL, _LARGE, _INCREMENT = 100_000, 1_000_000, 10_000
_SHARE = 300_000


def increment(ground: Ground) -> None:
    """Compare a run over new events, marts included, on a short and on a long history of the same campaigns."""
    urls = {}
    for history in (_SMALL, _LARGE):
        url = urls[history] = ground.create_database(f"bench_marts_{history}")
        prepare(ground, url, _events_file(ground, history, seed=1))
        transform_seconds(ground, url, marts=True)
        ground.psql(url, "-c", "vacuum analyze")
    compare_histories(
        ground, "marts increment", urls, lambda round_: _events_file(ground, _INCREMENT, seed=100 + round_), marts=True
    )


def share(ground: Ground) -> None:
    """Compare the first fill of the marts with the first fill of the tables, on the same events."""
    url = ground.create_database("bench_marts_share")
    prepare(ground, url, _events_file(ground, _SHARE, seed=2))
    tables = transform_seconds(ground, url)
    marts = transform_seconds(ground, url, marts=True)
    idle = transform_seconds(ground, url, marts=True)
    report(
        "marts share",
        f"{(marts - idle) / tables:.2f} times the time of the tables: {marts - idle:.2f} s against {tables:.2f} s for "
        f"{_SHARE:,} events; a run with nothing to do takes {idle:.2f} s",
    )


def _events_file(ground: Ground, count: int, seed: int) -> Path:
    """Write about so many sample events of recipients that no other seed has."""
    path = ground.folder / f"sample-{count}-{seed}.ndjson"
    if not path.exists():
        events = generate_sample_events(_LAST_DAY, recipients=round(count / _EVENTS_EACH), seed=seed).iterable
        path.write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")
    return path
