"""dbt's split of landed events, compared with the same inserts in hand-written SQL."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from loader.postgres.database import bundled, open_database
from loader.settings import Settings, read_settings
from loader.transform.dbt import transform
from tests.bench.ground import Ground, median_ratio, report, seconds

_EVENTS = 300_000
_ROUNDS = 3
_SMALL, _LARGE, _INCREMENT = 100_000, 5_000_000, 10_000
_HISTORY, _NEW, _REPEATED = 2_000_000, 1_000_000, 0.01


def split(ground: Ground) -> None:
    """Compare a first run over landed events with hand-written inserts, keys included."""
    path = ground.events_file(_EVENTS)
    template = ground.create_database("bench_landed")
    prepare(ground, template, path)
    script = _script(ground, "by_hand", _by_hand())
    pairs = []
    for round_ in range(_ROUNDS + 1):
        by_hand = ground.create_database("bench_by_hand", "bench_landed")
        ground.psql(by_hand, "-c", "vacuum analyze raw.events", "-c", "checkpoint")
        baseline = seconds(partial(ground.psql, by_hand, "-f", str(script)))
        ours = ground.create_database("bench_split", "bench_landed")
        ground.psql(ours, "-c", "vacuum analyze raw.events", "-c", "checkpoint")
        taken = transform_seconds(ground, ours)
        if round_:  # the first makes dbt parse the project and warms the disk's cache
            pairs.append((taken, baseline))
    taken, baseline = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    report(
        "split",
        f"{median_ratio(pairs):.2f} times the inserts by hand: {taken:.2f} s against {baseline:.2f} s for "
        f"{_EVENTS:,} events into their tables and tracks",
    )


def idle(ground: Ground) -> None:
    """Measure a run without work, in a permanent process."""
    url = ground.create_database("bench_idle")
    prepare(ground, url, ground.events_file(10_000))
    first = transform_seconds(ground, url)
    again = sorted(transform_seconds(ground, url) for _ in range(5))
    report("idle", f"{again[2]:.2f} s for a run with nothing to do ({first:.2f} s for the first over 10,000 events)")


def increment(ground: Ground) -> None:
    """Compare a run over new events on a short and on a long history."""
    urls = {}
    for history in (_SMALL, _LARGE):
        url = urls[history] = ground.create_database(f"bench_history_{history}")
        prepare(ground, url)
        for part in range(max(1, history // 1_000_000)):
            ground.run_loader(url, "load", str(ground.events_file(min(history, 1_000_000), seed=part)))
        transform_seconds(ground, url)
        ground.psql(url, "-c", "vacuum analyze")
    compare_histories(
        ground, "increment", urls, lambda round_: ground.events_file(_INCREMENT, seed=100 + round_), marts=False
    )


def compare_histories(
    ground: Ground, title: str, urls: Mapping[int, str], increment: Callable[[int], Path], *, marts: bool
) -> None:
    """Compare runs over the same new events on databases with a short and a long history, in turn.

    Args:
        ground: The base of the benchmarks.
        title: The title of the result.
        urls: The databases, by the number of events in their history.
        increment: Returns the file of new events of a round.
        marts: Fill the marts, too.
    """
    small, large = sorted(urls)
    pairs = []
    for round_ in range(6):
        taken = {}
        for history in (small, large):
            ground.run_loader(urls[history], "load", str(increment(round_)))
            taken[history] = transform_seconds(ground, urls[history], marts=marts)
        if round_:  # the first warms the disk's cache
            pairs.append((taken[large], taken[small]))
    long, short = sorted(pairs)[len(pairs) // 2]
    report(
        title,
        f"{median_ratio(pairs):.2f} times as long on {large:,} events of history as on {small:,}: "
        f"{long:.2f} s against {short:.2f} s for {_INCREMENT:,} new events",
    )


def large(ground: Ground) -> None:
    """Compare a large increment with the same inserts by hand, which leave repeated ids to the key.

    One event in a hundred has the id of an event of the increment, or of the history.
    """
    for repeated in (0.0, _REPEATED):
        url = ground.create_database("bench_large")
        prepare(ground, url)
        history = [ground.events_file(1_000_000, seed=part) for part in range(_HISTORY // 1_000_000)]
        for path in history:
            ground.run_loader(url, "load", str(path))
        transform_seconds(ground, url)
        ground.psql(url, "-f", str(_script(ground, "history", _by_hand())))
        path = ground.events_file(_NEW, seed=50, repeated=repeated, of=history[0])
        ground.run_loader(url, "load", str(path))
        ground.psql(url, "-c", "vacuum analyze", "-c", "checkpoint")
        new = f"seq > (select max(seq) - {_NEW} from raw.events)"
        baseline = seconds(partial(ground.psql, url, "-f", str(_script(ground, "new", _by_hand(new)))))
        ground.psql(url, "-c", "checkpoint")
        taken = transform_seconds(ground, url)
        report(
            "large increment",
            f"{taken / baseline:.2f} times inserts by hand with `on conflict`: {taken:.1f} s against {baseline:.1f} s "
            f"for {_NEW:,} new events on {_HISTORY:,}, {repeated:.0%} with an id that comes again",
        )


def _script(ground: Ground, name: str, statements: str) -> Path:
    path = ground.folder / f"{name}.sql"
    path.write_text(statements, encoding="utf-8")
    return path


def prepare(ground: Ground, url: str, path: Path | None = None) -> None:
    """Make the raw schema and a source in a database, and load a file."""
    ground.run_loader(url, "migrate")
    ground.run_loader(url, "source", "add", "Iterable")
    if path:
        ground.run_loader(url, "load", str(path))


def transform_seconds(ground: Ground, url: str, *, marts: bool = False) -> float:
    """Return the duration of a transform in this process, as a permanent process makes it."""
    # dbt parses the project again when the database changes, so each database has a home of its own.
    home = str(ground.folder / f"home-{urlsplit(url).path[1:]}")
    os.environ |= {"DATABASE_URL": url, "LOADER_HOME": home, "LOADER_MARTS": str(marts).lower()}
    read_settings.cache_clear()
    settings: Settings = read_settings()
    with open_database(settings) as database:
        return seconds(lambda: transform(database, settings))


def _by_hand(new: str = "") -> str:
    """Return hand-written inserts: the models' columns with plain operators and casts, without checks.

    Args:
        new: A condition for the events of a later insert into the same tables; a first insert makes the tables.
    """
    statements = [] if new else ["create schema by_hand;"]
    models = bundled("dbt_project") / "models" / "iterable"
    for file in sorted(models.glob("*.yml")):
        for model in yaml.safe_load(file.read_text(encoding="utf-8"))["models"] if file.stem[0] != "_" else []:
            columns = model["columns"]
            types = [f'"{c["name"]}" {c["data_type"]}{" primary key" if c["name"] == "id" else ""}' for c in columns]
            values = ", ".join(_plain_value(column) for column in columns)
            where = "collection is not null" if model["name"] == "tracks" else f"collection = '{model['name']}'"
            where += f" and {new}" if new else ""
            if not new:
                statements.append(f"create table by_hand.{model['name']} ({', '.join(types)});")
            insert = f"insert into by_hand.{model['name']} select {values} from raw.events where {where}"
            statements.append(f"{insert} order by seq on conflict (id) do nothing;" if new else f"{insert};")
    return "\n".join(statements)


def _plain_value(column: dict[str, object]) -> str:
    meta = column.get("config", {}).get("meta", {})  # type: ignore[attr-defined]
    for name in ("context", "property"):
        if name in meta:
            path = ",".join(["context" if name == "context" else "properties", *meta[name].split(".")])
            return f"(payload #>> '{{{path}}}')::{column['data_type']}"
    plain = {
        "id": "message_id",
        "received_at": "received_at",
        "uuid_ts": "now()",
        "anonymous_id": "payload ->> 'anonymousId'",
        "user_id": "payload ->> 'userId'",
        "event": "collection",
        "event_text": "payload ->> 'event'",
        "original_timestamp": "payload ->> 'originalTimestamp'",
        "sent_at": "(payload ->> 'sentAt')::timestamptz",
        "timestamp": "(payload ->> 'timestamp')::timestamptz",
    }
    return plain[str(column["name"])]
