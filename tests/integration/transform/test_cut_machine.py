"""Random histories of transactions and runs, compared after every run with a model without SQL."""

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from loader.postgres.database import Database
from loader.settings import Settings
from tests.support.dbt_runs import run
from tests.support.factories import LandedEvent, insert_event
from tests.support.served_tables import expected, law

SOURCES = ("iterable", "app")
MODELS = ("email_opened", "push_opened", "tracks")
NUMBERS = ("accepted", "in_collections", "in_tracks_only", "quarantined", "duplicates", "other_calls", "waiting")


WRITER = st.integers(0, 2)
ACTION = st.one_of(
    st.tuples(
        st.just("insert"),
        WRITER,
        st.sampled_from(["iterable", "iterable", "app"]),
        st.sampled_from(["email_opened", "email_opened", "email_opened", "push_opened", "order_placed", None]),
        st.sampled_from(["a", "b", "ab", "cab", "aa"]),
        st.sampled_from([7, "8", "x", None, ""]),
        st.sampled_from(["none", "none", "kept", "undone"]),
    ),
    st.tuples(st.just("end"), WRITER, st.sampled_from([True, True, True, False])),
    st.tuples(st.just("take_id"), WRITER),
)


class Writer:
    """A transaction that lands events, with the events that a commit now would leave."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url)
        self.events: list[LandedEvent] = []

    def end(self, *, commit: bool) -> list[LandedEvent]:
        """Commit or roll back, and return the events that stay."""
        if commit:
            self.connection.commit()
        self.connection.close()
        return self.events if commit else []


class CutMachine(RuleBasedStateMachine):
    """Overlapping writers, runs of some models, rebuilds and restores."""

    database: Database
    run_settings: Settings
    overtaken = 0

    def __init__(self) -> None:
        super().__init__()
        self.reader = self.database.connect(autocommit=True)
        self.reader.execute(
            "truncate raw.events, raw.mismatches, raw.syncs, raw.transforms;"
            "update raw.cursors set snapshot = pg_current_snapshot(), read_rows = 0, table_rows = 0, last_seq = 0;"
            + ";".join(f"truncate {source}.{model}" for source in SOURCES for model in MODELS)
        )
        self.writers: dict[int, Writer] = {}
        self.committed: list[LandedEvent] = []
        self.seen: dict[str, list[LandedEvent]] = {model: [] for model in MODELS}
        self.adopted = False
        self.number = 0

    def writer(self, which: int) -> Writer:
        """Return an open transaction, or begin a new transaction."""
        if which not in self.writers:
            self.writers[which] = Writer(self.run_settings.database_url)
        return self.writers[which]

    @rule(
        actions=st.lists(ACTION, min_size=3, max_size=8),
        models=st.sampled_from([MODELS, MODELS, MODELS, MODELS[:1], MODELS[1:], MODELS[2:]]),
        full=st.sampled_from([False, False, False, True]),
    )
    def work_and_run(self, actions: list[tuple], models: tuple[str, ...], *, full: bool) -> None:
        """Let the writers work, then run some models while transactions are open."""
        for action, *arguments in actions:
            getattr(self, action)(*arguments)
        if any(len(self.seen[model]) < len(self.committed) for model in models):
            self.run(models, full=full)

    @precondition(lambda self: not self.writers)
    @rule()
    def restore(self) -> None:
        """Make the transaction ids those of another cluster, as after a restore."""
        self.reader.execute("update raw.cluster set system_identifier = system_identifier + 1")
        assert self.reader.execute("select raw.adopt_cluster()").fetchone() == (True,)
        self.adopted = True

    def take_id(self, which: int) -> None:
        """Give a transaction its id, perhaps long before its first event."""
        self.writer(which).connection.execute("select pg_current_xact_id()")

    def insert(  # noqa: PLR0917 - Hypothesis passes them by name
        self, which: int, source: str, collection: str | None, message_ids: str, campaign: object, savepoint: str
    ) -> None:
        """Land events that share ids with other events, with a campaign that may not fit its column."""
        writer = self.writer(which)
        events = []
        if savepoint != "none":
            writer.connection.execute("savepoint s")
        for message_id in message_ids:
            self.number += 1
            mark = str(self.number)
            events.append(
                insert_event(writer.connection, collection, message_id, source=source, campaign=campaign, mark=mark)
            )
        if savepoint == "undone":
            writer.connection.execute("rollback to savepoint s")
        else:
            writer.events += events

    def end(self, which: int, commit: bool) -> None:
        """Commit or roll back, in any order."""
        if which in self.writers:
            self.committed += self.writers.pop(which).end(commit=commit)

    def run(self, models: tuple[str, ...], *, full: bool) -> None:
        """Run some models, and compare every table with the events that its model has seen."""
        before = self.holders()
        run(self.database, self.run_settings, *models, full_refresh=full)
        for model in models:
            self.seen[model] = list(self.committed)
        self.adopted = self.adopted and models != MODELS
        self.check()
        after = self.holders()
        type(self).overtaken += sum(after[key] != mark for key, mark in before.items())

    def holders(self) -> dict[tuple[str, str, str], str]:
        """Return the event of each id in each table."""
        return {
            (source, model, event_id): mark
            for source in SOURCES
            for model in MODELS
            for event_id, mark in self.reader.execute(f"select id, user_id from {source}.{model}")
        }

    def check(self) -> None:
        """Compare tables, mismatches and the conservation law with the model."""
        for source in SOURCES:
            mismatches = set()
            for model in MODELS:
                rows = expected(self.seen[model], source, model)
                found = dict(self.reader.execute(f"select id, user_id from {source}.{model}").fetchall())
                assert found == {event_id: event.mark for event_id, event in rows.items()}
                if model != "tracks":
                    campaigns = dict(self.reader.execute(f"select id, campaign_id from {source}.{model}").fetchall())
                    fitting = {7: 7, "8": 8}
                    assert campaigns == {event_id: fitting.get(e.campaign) for event_id, e in rows.items()}
                    mismatches |= {(model, event_id, "x") for event_id, e in rows.items() if e.campaign == "x"}
            recorded = self.reader.execute(
                "select model, event_id, value from raw.mismatches where source = %s and column_name = 'campaign_id'",
                (source,),
            )
            assert set(recorded.fetchall()) == mismatches
            numbers = law(self.reader, source)
            if not self.adopted:
                # After a restore, a reader that was ahead starts over. Its events count as waiting until it has run.
                assert [numbers[name] for name in NUMBERS] == self.account(source)

    def account(self, source: str) -> list[int]:
        """Count the messages of a source by their outcomes."""
        committed = [event for event in self.committed if event.source == source]
        tables = {model: expected(self.seen[model], source, model) for model in MODELS}
        other = sum(event.collection is None for event in committed)
        in_collections = sum(len(tables[model]) for model in MODELS[:2])
        only = sum(event.collection not in MODELS for event in tables["tracks"].values())
        readers = {event: event.collection if event.collection in MODELS else "tracks" for event in committed}
        waiting = sum(e.collection is not None and e not in self.seen[readers[e]] for e in committed)
        duplicates = len(committed) - other - waiting - in_collections - only
        return [len(committed), in_collections, only, 0, duplicates, other, waiting]

    def teardown(self) -> None:
        """Commit the open transactions, run again, and compare the increments with a rebuild."""
        with self.reader:
            for writer in self.writers.values():
                self.committed += writer.end(commit=True)
            if self.committed:
                self.run(MODELS, full=False)
                increments = self.state()
                self.run(MODELS, full=True)
                assert self.state() == increments

    def state(self) -> list[tuple]:
        """Return everything to compare with a rebuild, without `uuid_ts`."""
        queries = [f"select to_jsonb(t) - 'uuid_ts' from {s}.{m} as t order by id" for s in SOURCES for m in MODELS]
        queries.append("select model, source, event_id, column_name, value from raw.mismatches order by 1, 2, 3, 4")
        return [row for query in queries for row in self.reader.execute(query).fetchall()]


@pytest.fixture
def machine(served: Database, served_settings: Settings) -> type[CutMachine]:
    """Return the machine, on a database with the tables of two sources."""
    with served.connect(autocommit=True) as connection:
        connection.execute("insert into raw.sources (name, schema_name) values ('App', 'app')")
    run(served, served_settings, *MODELS)

    class Bound(CutMachine):
        database = served
        run_settings = served_settings

    return Bound


def test_tables_equal_their_events_after_any_history(machine: type[CutMachine]) -> None:
    """After every run, each table equals its events, the law holds, and a rebuild changes nothing."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=4,
            stateful_step_count=6,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert machine.overtaken > 0


@pytest.mark.soak
def test_tables_equal_their_events_after_any_long_history(machine: type[CutMachine]) -> None:
    """The same with many long random histories."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
