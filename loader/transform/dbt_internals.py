"""Changes parts of dbt that have no setting: the leftovers of a run, its connections, and the order of the tables.

pyproject.toml bounds dbt to the versions that were tested.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def tidied() -> Iterator[None]:
    """Remove the leftovers of a run of dbt in this process, so that the next run takes no longer.

    dbt leaves its log file open. dbt-adapters (1.24) appends the behavior flags of dbt-postgres to a list in each run,
    and inspects the whole call stack for each entry.
    """
    from dbt.adapters.base.impl import DEFAULT_BASE_BEHAVIOR_FLAGS  # noqa: PLC0415
    from dbt_common.events.event_manager_client import get_event_manager  # noqa: PLC0415

    listed = len(DEFAULT_BASE_BEHAVIOR_FLAGS)
    try:
        yield
    finally:
        del DEFAULT_BASE_BEHAVIOR_FLAGS[listed:]
        for logger in get_event_manager().loggers:
            for handler in getattr(getattr(logger, "_python_logger", None), "handlers", ()):
                if isinstance(handler, logging.FileHandler):
                    handler.close()


@contextmanager
def begin_with_tracks() -> Iterator[None]:
    """Make the runs of a block begin with `tracks`, which takes as long as all other tables together.

    dbt takes models of equal depth by name. So `tracks` would begin late, and end alone on one core. A parent of all
    other tables would give the order too, but dbt's lineage would show an edge that no SQL has.
    """
    from dbt.graph.queue import GraphQueue  # noqa: PLC0415

    by_depth = GraphQueue._get_scores

    def by_depth_and_size(queue: GraphQueue, graph: Any) -> dict[str, tuple[int, bool]]:
        return {node: (depth, not node.endswith(".tracks")) for node, depth in by_depth(queue, graph).items()}

    GraphQueue._get_scores = by_depth_and_size
    try:
        yield
    finally:
        GraphQueue._get_scores = by_depth


@contextmanager
def keep_connections() -> Iterator[None]:
    """Let the runs of a block use a connection for one model after another.

    dbt closes the connection after each model. The server process of a new one reads the catalog and compiles the
    functions of the schema raw again. dbt closes the kept connections at the end of a run.

    Connections before the first model are closed. The start of a run would take them for those of another run.
    """
    from dbt.adapters.base.connections import BaseConnectionManager  # noqa: PLC0415
    from dbt.adapters.contracts.connection import ConnectionState  # noqa: PLC0415
    from dbt.adapters.postgres.connections import psycopg2  # noqa: PLC0415

    close = BaseConnectionManager.release

    def release(manager: BaseConnectionManager) -> None:
        connection = manager.get_if_exists()
        if connection is None or connection.state != ConnectionState.OPEN or not connection.name.startswith("model."):
            close(manager)
            return
        try:
            # This ends the transaction, and resets the settings of the session.
            connection.handle.reset()
            connection.transaction_open = False
        except psycopg2.Error:
            close(manager)

    BaseConnectionManager.release = release
    try:
        yield
    finally:
        BaseConnectionManager.release = close
