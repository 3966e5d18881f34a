"""Saves dbt work in the tests' processes: repeated parsing of a project, and messages without a logger.

Parsing the project takes several times as long as a run. dbt does it again for each connection, though only the name of
the database differs in the result. And dbt builds a message for each event of its debug level, which no logger takes.
For each result of a query, agate builds a parser of times in plain language, while dbt has only fixed formats.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import agate.data_types.date
import agate.data_types.date_time
import parsedatetime
from dbt.contracts.graph.manifest import Manifest
from dbt.flags import get_flags
from dbt.parser.manifest import (
    PARTIAL_PARSE_FILE_NAME,
    ManifestLoader,
    extended_mashumaro_encoder,
    extended_mashumuro_decoder,
)
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager

_build = BaseEvent.__init__
_get = BaseEvent.__getattr__
_fire = EventManager.fire_event
_read = ManifestLoader.read_manifest_for_partial_parse
_write = ManifestLoader.write_manifest_for_partial_parse


def quicken(folder: Path) -> None:
    """Replace parts of dbt by faster parts.

    Args:
        folder: The folder in which the processes of a test run share the parsed project.
    """
    for module in (agate.data_types.date, agate.data_types.date_time):
        module.parsedatetime = _Parsers()
    EventManager.fire_event = _fire_wanted
    BaseEvent.__init__ = _remember
    BaseEvent.__getattr__ = _build_when_asked
    ManifestLoader.read_manifest_for_partial_parse = functools.partialmethod(_read_shared, folder)
    ManifestLoader.write_manifest_for_partial_parse = functools.partialmethod(_write_shared, folder)


def _shared(loader: ManifestLoader, folder: Path) -> Path:
    """Return the file of the parsed project for the same models and environment."""
    state = loader.manifest.state_check
    models = sorted(path.name for path in Path(loader.root_project.project_root, "models").rglob("*.*"))
    of = [*models, state.vars_hash.checksum, state.project_env_vars_hash.checksum, os.environ.get("LOADER_SCHEMA")]
    return folder / f"parsed-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.msgpack"


def _read_shared(loader: ManifestLoader, folder: Path) -> Manifest | None:
    """Read the parsed project of this connection, or else the shared one."""
    own = _read(loader)
    shared = _shared(loader, folder)
    if own is not None or not get_flags().PARTIAL_PARSE or not shared.exists():
        return own
    manifest: Manifest = Manifest.from_msgpack(shared.read_bytes(), decoder=extended_mashumuro_decoder)
    manifest.state_check.profile_hash = loader.manifest.state_check.profile_hash
    if not loader.is_partial_parsable(manifest)[0]:
        return None
    database = loader.root_project.credentials.database
    for node in (*manifest.nodes.values(), *manifest.sources.values()):
        if getattr(node, "relation_name", None):
            node.relation_name = node.relation_name.replace(f'"{node.database}".', f'"{database}".', 1)
        node.database = database
    target = Path(loader.root_project.project_target_path)
    target.mkdir(parents=True, exist_ok=True)
    (target / PARTIAL_PARSE_FILE_NAME).write_bytes(manifest.to_msgpack(extended_mashumaro_encoder))
    # The file is read again, so that dbt gets the result in its usual form.
    return _read(loader)


def _write_shared(loader: ManifestLoader, folder: Path) -> None:
    """Write the parsed project to the file of dbt, and to the shared one."""
    _write(loader)
    shared = _shared(loader, folder)
    if not shared.exists():
        own = shared.with_suffix(f".{os.getpid()}")
        own.write_bytes(Path(loader.root_project.project_target_path, PARTIAL_PARSE_FILE_NAME).read_bytes())
        own.rename(shared)


class _Parsers:
    """The module of the parser of times, which makes its tables once."""

    Constants = staticmethod(functools.cache(parsedatetime.Constants))

    def __getattr__(self, name: str) -> Any:
        return getattr(parsedatetime, name)


def _remember(event: BaseEvent, *args: Any, **kwargs: Any) -> None:
    if event.level_tag() is EventLevel.DEBUG:
        event.__dict__["_given"] = (args, kwargs)
    else:
        _build(event, *args, **kwargs)


def _build_when_asked(event: BaseEvent, name: str) -> Any:
    given = event.__dict__.pop("_given", None)
    if given is not None:
        _build(event, *given[0], **given[1])
    if name == "pb_msg":
        return object.__getattribute__(event, name)
    return _get(event, name)


def _fire_wanted(
    manager: EventManager, event: BaseEvent, level: EventLevel | None = None, *args: Any, **kwargs: Any
) -> None:
    wanted = any(logger.level is EventLevel.DEBUG for logger in manager.loggers)
    if wanted or (level or event.level_tag()) is not EventLevel.DEBUG:
        _fire(manager, event, level, *args, **kwargs)
