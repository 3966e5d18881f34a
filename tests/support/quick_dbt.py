"""Saves dbt work in the tests' processes: repeated parsing, compiling and checking, and messages without a logger.

Parsing the project takes several times as long as a run. dbt parses again for each connection, though only the name of
the database differs in the result. And dbt builds a message for each event of its debug level, which no logger takes.
For each result of a query, agate builds a parser of times in plain language, while dbt has only fixed formats.

Reading a parsed project again takes half the time of a run of one model. So this process keeps the last results.

For each model and each question to the database, dbt wraps all macros, and it renders a macro's file for each call.
It opens a connection for each model, whose server process then reads the catalog and compiles the functions again. So a
macro is wrapped and rendered when a context first needs it, and connections are used again, by later runs too.
"""

import functools
import gc
import hashlib
import marshal
import os
import pickle
import threading
import time
from collections.abc import Callable, Container, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import agate.data_types.date
import agate.data_types.date_time
import dbt.adapters.postgres.connections
import dbt.parser.manifest
import jinja2
import parsedatetime
import psycopg2
from dbt.adapters.base.connections import BaseConnectionManager
from dbt.adapters.factory import get_adapter
from dbt.clients.jinja import MacroGenerator
from dbt.compilation import Linker
from dbt.config.runtime import RuntimeConfig
from dbt.constants import DEFAULT_ENV_PLACEHOLDER
from dbt.context.macros import MacroNamespace
from dbt.context.manifest import ManifestContext
from dbt.context.query_header import generate_query_header_context
from dbt.contracts.graph.manifest import Manifest, ManifestStateCheck
from dbt.contracts.graph.nodes import Macro
from dbt.contracts.graph.unparsed import UnparsedMacro
from dbt.flags import get_flags
from dbt.include.global_project import PROJECT_NAME as GLOBAL_PROJECT_NAME
from dbt.parser.macros import MacroParser
from dbt.parser.manifest import (
    PARTIAL_PARSE_FILE_NAME,
    ManifestLoader,
    extended_mashumaro_encoder,
    extended_mashumuro_decoder,
)
from dbt.plugins.manager import PluginManager
from dbt_common.behavior_flags import BehaviorFlagRendered
from dbt_common.clients.jinja import BaseMacroGenerator, MacroFuzzTemplate, MacroReturn, NativeSandboxTemplate
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
_build_check = ManifestLoader.build_manifest_state_check
_compile = jinja2.Environment.compile
_parse_macros = MacroParser.parse_unparsed_macros
_find_calls = ManifestLoader.macro_depends_on
_extract_calls = dbt.parser.manifest.statically_extract_macro_calls
_validate = dbtClassMixin.validate.__func__
_get_macro = BaseMacroGenerator.get_macro
_to_dict = ManifestContext.to_dict
_make_context = {each: each.new_context for each in (MacroFuzzTemplate, NativeSandboxTemplate)}
_connect = psycopg2.connect
_cleanup = BaseConnectionManager.cleanup_all


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
    ManifestLoader.build_manifest_state_check = _check_state
    PluginManager.get_prefixed_modules = functools.cache(PluginManager.get_prefixed_modules)
    jinja2.Environment.compile = functools.partialmethod(_compile_once, folder)
    MacroParser.parse_unparsed_macros = functools.partialmethod(_parse_macros_once, folder)
    ManifestLoader.macro_depends_on = functools.partialmethod(_find_macro_calls, folder)
    dbtClassMixin.validate = classmethod(_validate_once)
    ManifestContext._build_namespace = _build_namespace
    ManifestContext.to_dict = _read_values
    for template in _make_context:
        template.new_context = _new_context
    BaseMacroGenerator.get_macro = _get_macro_once
    BaseMacroGenerator.call_macro = _call_macro
    MacroGenerator.__call__ = _call_and_track
    dbt.adapters.postgres.connections.psycopg2 = _Psycopg2()
    BaseConnectionManager.cleanup_all = _cleanup_all
    # The tests read no module of a flag and no summary of a graph.
    BehaviorFlagRendered._default_source = staticmethod(lambda: "tests")
    Linker.get_graph_summary = lambda *_: {}
    # The collector of cycles finds nothing in the modules, and looking through all of them takes long.
    gc.collect()
    gc.freeze()


def _shared(loader: ManifestLoader, folder: Path) -> Path:
    """Return the file of the parsed project for the same models, settings and environment."""
    state = loader.manifest.state_check
    root = Path(loader.root_project.project_root)
    models = sorted((path.name, path.read_bytes()) for path in (root / "models").rglob("*.*"))
    target = loader.root_project.target_name, loader.root_project.credentials.schema
    environment = state.vars_hash.checksum, state.project_env_vars_hash.checksum, os.environ.get("LOADER_SCHEMA")
    of = [(root / "dbt_project.yml").read_bytes(), *models, *target, *environment]
    return folder / f"parsed-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.msgpack"


def _target(loader: ManifestLoader) -> Path:
    """Return the folder of this run's artifacts, which exists."""
    target = Path(loader.root_project.project_target_path)
    target.mkdir(parents=True, exist_ok=True)
    return target


# The file beside a parsed project that names the shared project of the same models, and the connection.
_NAME = "parsed_as.txt"


def _mark(loader: ManifestLoader, shared: Path) -> str:
    return f"{shared.name} {loader.manifest.state_check.profile_hash.checksum}"


def _read_shared(loader: ManifestLoader, folder: Path) -> Manifest | None:
    """Read the parsed project of these models: that of this connection, or else the shared one.

    A folder may have the project of other models, as tests change models. dbt would parse the changed files only, and
    this may lose tests of other models. So the shared project goes first.
    """
    shared = _shared(loader, folder)
    name = _target(loader) / _NAME
    is_own = name.exists() and name.read_text(encoding="utf-8") == _mark(loader, shared)
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
    name.write_text(_mark(loader, shared), encoding="utf-8")
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
    name.write_text(_mark(loader, shared), encoding="utf-8")
    if not shared.exists():
        own = shared.with_suffix(f".{os.getpid()}")
        own.write_bytes((name.parent / PARTIAL_PARSE_FILE_NAME).read_bytes())
        own.rename(shared)


def _check_state(loader: ManifestLoader) -> ManifestStateCheck:
    """Take a target that the command line names and the same target by default for equal, which dbt does not."""
    arguments = loader.root_project.args
    named = arguments.target
    object.__setattr__(arguments, "target", loader.root_project.target_name)
    try:
        return _build_check(loader)
    finally:
        object.__setattr__(arguments, "target", named)


_manifests: dict[tuple[object, ...], tuple[bytes, dict[str, Any]]] = {}
# The parts of a manifest that no run changes.
_FIXED = ("docs", "files", "macros")


def _load_copy(cls: type[ManifestLoader], config: RuntimeConfig, **options: Any) -> Manifest:
    """Return the manifest of a project, as a copy of the last one when neither files nor environment have changed.

    dbt changes the manifest in a run, so each run needs a copy of its own.
    """
    # The value `var` of a context does this too, but a run may never ask for the value.
    config.load_dependencies()
    if not get_flags().PARTIAL_PARSE:
        return _load(cls, config, **options)
    files = _files(config)
    kept = _manifests.get((*files, _parsed_file(config)))
    if kept is not None:
        manifest = Manifest()
        vars(manifest).update(pickle.loads(kept[0]))  # noqa: S301 - made by this process
        vars(manifest).update({name: dict(value) for name, value in kept[1].items()})
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
    fixed = {name: dict(state.pop(name)) for name in _FIXED}
    _manifests[(*files, _parsed_file(config))] = pickle.dumps(state, pickle.HIGHEST_PROTOCOL), fixed
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


_results: dict[tuple[object, ...], Any] = {}


def _make_once(folder: Path, of: tuple[object, ...], make: Callable[[], Any]) -> Any:
    """Make a result, or return that of the last time, which may be that of another process of the run.

    Args:
        folder: The folder that the processes share.
        of: Everything that the result follows from, as plain values.
        make: Makes the result, of plain values or code.
    """
    if of not in _results:
        file = folder / f"made-{hashlib.sha256(repr(of).encode()).hexdigest()}"
        if file.exists():
            _results[of] = marshal.loads(file.read_bytes())  # noqa: S302 - made by this test run
        else:
            _results[of] = make()
            own = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            own.write_bytes(marshal.dumps(_results[of]))
            own.rename(file)
    return _results[of]


def _compile_once(
    environment: jinja2.Environment,
    folder: Path,
    source: str | jinja2.nodes.Template,
    name: str | None = None,
    filename: str | None = None,
    **options: Any,
) -> Any:
    """Compile a template once in a run."""
    if not isinstance(source, str):
        return _compile(environment, source, name, filename, **options)
    kind = f"{type(environment).__module__}.{type(environment).__qualname__}"
    of = (kind, *sorted(environment.extensions), source, name, filename, *sorted(options.items()))
    return _make_once(folder, of, lambda: _compile(environment, source, name, filename, **options))


def _parse_macros_once(parser: MacroParser, folder: Path, file: UnparsedMacro) -> list[Macro]:
    """Parse the macros of a file once in a run, and return copies as of now."""
    of = ("macros", parser.project.project_name, file.package_name, file.original_file_path, file.raw_code)
    pickled = _make_once(folder, of, lambda: pickle.dumps(list(_parse_macros(parser, file))))
    macros: list[Macro] = pickle.loads(pickled)  # noqa: S301 - made by this test run
    for macro in macros:
        macro.created_at = time.time()
    return macros


def _find_macro_calls(loader: ManifestLoader, folder: Path) -> None:
    """Find the calls of each macro once in a run. A call of `dispatch` depends on all macros of the project."""
    names = hashlib.sha256(repr(sorted(loader.manifest.macros)).encode()).hexdigest()

    def extract(source: str, *context: Any) -> list[str]:
        of = ("calls", source, names if "dispatch" in source else "")
        return list(_make_once(folder, of, lambda: list(_extract_calls(source, *context))))

    dbt.parser.manifest.statically_extract_macro_calls = extract
    _find_calls(loader)


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


class _Made(dict[str, Any]):
    """A dictionary that makes a missing value on request.

    Args:
        make: Makes the value of a name.
        names: The names that it can make.
        others: More such names.

    Attributes:
        has_globals: Whether it has Jinja's own names.
    """

    has_globals = False

    def __init__(self, make: Callable[[str], Any], names: Container[str], others: Container[str] = ()) -> None:
        super().__init__()
        self._make = make
        self._names = names
        self._others = others

    def __missing__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        made = self[name] = self._make(name)
        return made

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._names or name in self._others

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def _build_namespace(context: ManifestContext) -> MacroNamespace:
    """Return the macros as dbt does, and give the context a dictionary that makes its values."""
    builder = context._get_namespace_builder()
    packages = context.manifest.get_macros_by_package()
    internal = builder.internal_package_names
    own, root = builder.search_package, builder.root_package
    projects: dict[str, Macro] = {}
    for package in reversed(builder.internal_package_names_order):
        projects |= packages.get(package, {})
    local = packages.get(own, {}) if own not in internal else {}
    shared = packages.get(root, {}) if root != own and root not in internal else {}
    macros = {**projects, **shared, **local}
    members = context._context_members_

    def value(name: str) -> Any:
        return wrap(macros, name) if name in macros else member(name)

    def member(name: str) -> Any:
        return members[name].__get__(context) if hasattr(members[name], "__get__") else members[name]

    def wrap(of: Mapping[str, Macro], name: str) -> MacroGenerator:
        return MacroGenerator(of[name], values, builder.node, builder.thread_ctx)

    def wrapped(of: Mapping[str, Macro]) -> _Made:
        return _Made(functools.partial(wrap, of), of)

    values = _Made(value, macros, members)
    values["context"] = values
    values["builtins"] = _Made(member, members)
    others = {package: wrapped(each) for package, each in packages.items() if package not in internal}
    global_project = wrapped(projects)
    values |= {GLOBAL_PROJECT_NAME: global_project} | others
    context._ctx = values
    return MacroNamespace(wrapped(shared), wrapped(local), global_project, others)


def _new_context(template: jinja2.Template, values: dict[str, Any] | None = None, *options: Any, **more: Any) -> Any:
    """Look names up in one dictionary instead of two, with Jinja's own names in the dictionary of the context."""
    if not isinstance(values, _Made) or any(options) or more:
        return _make_context[type(template)](template, values, *options, **more)
    environment = template.environment
    if not values.has_globals:
        values.update({name: value for name, value in environment.globals.items() if name not in values})
        values.has_globals = True
    return environment.context_class(environment, values, template.name, template.blocks)


def _read_values(context: ManifestContext) -> Any:
    return context._ctx if isinstance(context._ctx, _Made) else _to_dict(context)


def _get_macro_once(generator: BaseMacroGenerator) -> Any:
    """Return the function of a macro, which a context keeps."""
    made = generator.__dict__.get("_made")
    if made is None:
        made = generator.__dict__["_made"] = _get_macro(generator)
    return made


def _call_macro(generator: BaseMacroGenerator, *args: Any, **kwargs: Any) -> Any:
    macro = generator.get_macro()
    try:
        return macro(*args, **kwargs)
    except MacroReturn as returned:
        return returned.value
    except (TypeError, jinja2.exceptions.TemplateRuntimeError):
        with generator.exception_handler():
            raise


def _call_and_track(generator: MacroGenerator, *args: Any, **kwargs: Any) -> Any:
    stack, name = generator.stack, generator.macro.unique_id
    if stack is None:
        return generator.call_macro(*args, **kwargs)
    if stack.depth == 0 and generator.node:
        generator.node.depends_on.add_macro(name)
    stack.push(name)
    try:
        return generator.call_macro(*args, **kwargs)
    finally:
        stack.pop(name)


_idle: dict[tuple[str, ...], list["_Kept"]] = {}
# The databases of the tests without `own_database` leave their connections here until there are so many others.
_IDLE_KEYS = 4
# Removes everything that a session keeps, except the caches of the catalog and of functions. The runs of the product
# look for other sessions by this name, so an idle session has another name.
_REST = (
    "reset all; discard temp; deallocate all; unlisten *; select pg_advisory_unlock_all();"
    " set application_name = 'kept for dbt'"
)
# A new session begins with the settings of its role and its database. They may change while a session is kept.
_WAKE = """
    reset application_name;
    select coalesce(string_agg(whole::text, ' ' order by whole::text), '') from pg_db_role_setting as whole
    where setdatabase in (0, (select oid from pg_database where datname = current_database()))
"""


class _Kept(psycopg2.extensions.connection):
    """A connection that waits for the next model or the next run when a model closes it."""

    key: tuple[str, ...] = ()
    defaults = ""

    def close(self) -> None:
        """Roll back, and keep the connection if it works."""
        if self.closed:
            return
        try:
            self.rollback()
            self.execute(_REST)
        except psycopg2.Error:
            self.end()
        else:
            _idle.setdefault(self.key, []).append(self)

    def execute(self, statements: str) -> str:
        """Execute statements outside of a transaction, and return the first value of the last one."""
        self.autocommit = True
        with self.cursor() as cursor:
            cursor.execute(statements)
            row = cursor.fetchone() if cursor.description else None
        self.autocommit = False
        return str(row[0]) if row else ""

    def end(self) -> None:
        """Close the connection."""
        super().close()


class _Psycopg2:
    """The module psycopg2, whose connections are kept until the test's database goes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg2, name)

    @staticmethod
    def connect(**settings: Any) -> psycopg2.extensions.connection:
        """Return a kept connection with these settings, as if it were new, or a new connection."""
        key = (str(settings.get("dbname")), repr(sorted(settings.items())))
        while _idle.get(key):
            kept = _idle[key].pop()
            try:
                is_alike = kept.execute(_WAKE) == kept.defaults
            except psycopg2.Error:
                is_alike = False
            if is_alike:
                return kept
            kept.end()
        made: _Kept = _connect(**settings, connection_factory=_Kept)
        made.key = key
        made.defaults = made.execute(_WAKE)
        return made


def _cleanup_all(manager: BaseConnectionManager) -> None:
    _cleanup(manager)
    while len(_idle) > _IDLE_KEYS:
        _end(next(iter(_idle)))


def end_connections(database: str) -> None:
    """End the kept connections to a database, before it is dropped or renamed.

    Args:
        database: The name of the database.
    """
    for key in [key for key in _idle if key[0] == database]:
        _end(key)


def _end(key: tuple[str, ...]) -> None:
    for kept in _idle.pop(key, ()):
        kept.end()
