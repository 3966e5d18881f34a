"""Saves dbt work in the tests' processes: repeated parsing, compiling and checking, and messages without a logger.

Parsing the project takes several times as long as a run. dbt does it again for each connection, though only the name of
the database differs in the result. And dbt builds a message for each event of its debug level, which no logger takes.
For each result of a query, agate builds a parser of times in plain language, while dbt has only fixed formats.

Reading a parsed project again takes half the time of a run of one model. So this process keeps the last results.
"""

import functools
import gc
import hashlib
import os
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import agate.data_types.date
import agate.data_types.date_time
import jinja2
import parsedatetime
from dbt.adapters.factory import get_adapter
from dbt.compilation import Linker
from dbt.config.runtime import RuntimeConfig
from dbt.constants import DEFAULT_ENV_PLACEHOLDER
from dbt.context.query_header import generate_query_header_context
from dbt.contracts.graph.manifest import Manifest
from dbt.flags import get_flags
from dbt.parser.manifest import (
    PARTIAL_PARSE_FILE_NAME,
    ManifestLoader,
    extended_mashumaro_encoder,
    extended_mashumuro_decoder,
)
from dbt.plugins.manager import PluginManager
from dbt_common.behavior_flags import BehaviorFlagRendered
from dbt_common.dataclass_schema import dbtClassMixin
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager
from dbt_common.invocation import get_invocation_id

_build = BaseEvent.__init__
_get = BaseEvent.__getattr__
_fire = EventManager.fire_event
_read = ManifestLoader.read_manifest_for_partial_parse
_write = ManifestLoader.write_manifest_for_partial_parse
_load = ManifestLoader.get_full_manifest.__func__
_compile = jinja2.Environment.compile
_validate = dbtClassMixin.validate.__func__


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
    ManifestLoader.get_full_manifest = classmethod(_load_copy)
    PluginManager.get_prefixed_modules = functools.cache(PluginManager.get_prefixed_modules)
    jinja2.Environment.compile = _compile_once
    dbtClassMixin.validate = classmethod(_validate_once)
    # The tests read no module of a flag and no summary of a graph.
    BehaviorFlagRendered._default_source = staticmethod(lambda: "tests")
    Linker.get_graph_summary = lambda *_: {}
    # The collector of cycles finds nothing in the modules, and looking through all of them takes long.
    gc.collect()
    gc.freeze()


def _shared(loader: ManifestLoader, folder: Path) -> Path:
    """Return the file of the parsed project for the same models and environment."""
    state = loader.manifest.state_check
    models = sorted(
        (path.name, path.read_bytes()) for path in Path(loader.root_project.project_root, "models").rglob("*.*")
    )
    target = loader.root_project.target_name, loader.root_project.credentials.schema
    environment = state.vars_hash.checksum, state.project_env_vars_hash.checksum, os.environ.get("LOADER_SCHEMA")
    of = [*models, *target, *environment]
    return folder / f"parsed-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.msgpack"


def _target(loader: ManifestLoader) -> Path:
    """Return the folder of this run's artifacts, which exists."""
    target = Path(loader.root_project.project_target_path)
    target.mkdir(parents=True, exist_ok=True)
    return target


# The file beside a parsed project that names the shared project of the same models.
_NAME = "parsed_as.txt"


def _read_shared(loader: ManifestLoader, folder: Path) -> Manifest | None:
    """Read the parsed project of these models: that of this connection, or else the shared one.

    A folder may have the project of other models, as tests change models. dbt would parse the changed files only, and
    this may lose tests of other models. So the shared project goes first.
    """
    shared = _shared(loader, folder)
    name = _target(loader) / _NAME
    is_own = name.exists() and name.read_text(encoding="utf-8") == shared.name
    if is_own or not get_flags().PARTIAL_PARSE or not shared.exists():
        return _read(loader)
    manifest: Manifest = Manifest.from_msgpack(shared.read_bytes(), decoder=extended_mashumuro_decoder)
    manifest.state_check.profile_hash = loader.manifest.state_check.profile_hash
    if not loader.is_partial_parsable(manifest)[0]:
        return _read(loader)
    database = loader.root_project.credentials.database
    models = [each.node_relation for each in manifest.semantic_models.values() if each.node_relation]
    for node in (*manifest.nodes.values(), *manifest.sources.values(), *models):
        if getattr(node, "relation_name", None):
            node.relation_name = node.relation_name.replace(f'"{node.database}".', f'"{database}".', 1)
        node.database = database
    (name.parent / PARTIAL_PARSE_FILE_NAME).write_bytes(manifest.to_msgpack(extended_mashumaro_encoder))
    name.write_text(shared.name, encoding="utf-8")
    # The file is read again, so that dbt gets the result in its usual form.
    return _read(loader)


def _write_shared(loader: ManifestLoader, folder: Path) -> None:
    """Write the parsed project to the file of dbt, and a project that was parsed as a whole to the shared file."""
    _write(loader)
    name = _target(loader) / _NAME
    if loader.partially_parsing:
        name.unlink(missing_ok=True)
        return
    shared = _shared(loader, folder)
    name.write_text(shared.name, encoding="utf-8")
    if not shared.exists():
        own = shared.with_suffix(f".{os.getpid()}")
        own.write_bytes((name.parent / PARTIAL_PARSE_FILE_NAME).read_bytes())
        own.rename(shared)


_manifests: dict[tuple[object, ...], bytes] = {}


def _load_copy(cls: type[ManifestLoader], config: RuntimeConfig, **options: Any) -> Manifest:
    """Return the manifest of a project, as a copy of the last one when neither files nor environment have changed.

    dbt changes the manifest in a run, so each run needs a copy of its own.
    """
    if not get_flags().PARTIAL_PARSE:
        return _load(cls, config, **options)
    files = _files(config)
    pickled = _manifests.get((*files, _parsed_file(config)))
    if pickled is not None:
        manifest = Manifest()
        vars(manifest).update(pickle.loads(pickled))  # noqa: S301 - made by this process
        if all(os.environ.get(name, DEFAULT_ENV_PLACEHOLDER) == value for name, value in manifest.env_vars.items()):
            manifest.metadata.generated_at = datetime.now(UTC).replace(tzinfo=None)
            manifest.metadata.invocation_id = get_invocation_id()
            adapter = get_adapter(config)
            adapter.set_macro_resolver(manifest)
            adapter.connections.set_query_header(generate_query_header_context(adapter.config, manifest))
            return manifest
    loaded: Manifest = _load(cls, config, **options)
    if len(_manifests) >= _KEPT:
        _manifests.clear()
    # dbt builds its private indexes again, and its own way to pickle a manifest confuses them (1.11).
    state = {name: value for name, value in vars(loaded).items() if not name.startswith("_")}
    _manifests[(*files, _parsed_file(config))] = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
    return loaded


# A manifest takes 3 MB.
_KEPT = 20


def _files(config: RuntimeConfig) -> tuple[object, ...]:
    """Return everything that a manifest follows from, except the variables of the environment in its macros."""
    root = Path(config.project_root)
    generated = {root / "logs", Path(config.project_target_path), root / "target"}
    versions = []
    for folder, folders, files in os.walk(root):
        folders[:] = [each for each in folders if Path(folder, each) not in generated]
        versions += [_version(Path(folder, each)) for each in files]
    environment = {**config.project_env_vars, **config.profile_env_vars}
    settings = (config.cli_vars, config.args.profile, config.args.target, environment, config.credentials.to_dict())
    return repr(sorted(versions)), repr(settings)


def _parsed_file(config: RuntimeConfig) -> object:
    """Return the version of dbt's file of the parsed project, which a test may remove or replace."""
    file = Path(config.project_target_path, PARTIAL_PARSE_FILE_NAME)
    return _version(file) if file.exists() else str(file)


def _version(file: Path) -> tuple[object, ...]:
    status = file.stat()
    return str(file), status.st_mtime_ns, status.st_size, status.st_ino


_compiled: dict[tuple[object, ...], Any] = {}


def _compile_once(
    environment: jinja2.Environment,
    source: str | jinja2.nodes.Template,
    name: str | None = None,
    filename: str | None = None,
    **options: Any,
) -> Any:
    """Compile a template, or return the code of the last time."""
    key = (type(environment), *sorted(environment.extensions), source, name, filename, *options.items())
    if not isinstance(source, str):
        return _compile(environment, source, name, filename, **options)
    if key not in _compiled:
        _compiled[key] = _compile(environment, source, name, filename, **options)
    return _compiled[key]


_valid: set[tuple[type[dbtClassMixin], str]] = set()


def _validate_once(cls: type[dbtClassMixin], data: Any) -> None:
    """Check data against the schema of a class, unless the same data have passed before."""
    key = (cls, repr(data))
    if key not in _valid:
        _validate(cls, data)
        _valid.add(key)


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
