"""The settings: their environment variables, defaults and limits.

`DATABASE_URL` names the database; every other variable starts with `LOADER_`. `loader --help` and docs/commands.md list
the settings that this module declares, so a setting is described here and nowhere else.
"""

import os
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated

from platformdirs import user_data_path
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from loader.errors import UsageError

# Variables that the dbt project reads beside the settings, and variables that processes of the loader pass to each
# other.
_OTHER_VARIABLES = frozenset(
    {"LOADER_SCHEMA", "LOADER_WIDEN", "LOADER_ALLOW_LOSS", "LOADER_ONLY_TABLES", "LOADER_SUPERVISOR"}
)

_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def default_home() -> Path:
    """Return the folder of the embedded database when `LOADER_HOME` is not set.

    PostgreSQL refuses to run as root, so root's server runs as another user, who cannot enter root's own home.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/loader")
    return user_data_path("loader")


# Seconds, which may be written with a unit.
Duration = Annotated[float, BeforeValidator(lambda value: read_duration(str(value)))]


class Settings(BaseSettings):
    """The settings of one process, read from its environment."""

    # A variable set to nothing, as compose files and CI do, is a variable not set.
    model_config = SettingsConfigDict(env_prefix="LOADER_", env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: str = Field(
        default="",
        validation_alias=AliasChoices("DATABASE_URL"),
        description="URL of a PostgreSQL 16 or newer, as postgresql://user:password@host:port/database. "
        "Without this variable, the loader starts the embedded PostgreSQL under LOADER_HOME.",
    )
    home: Path = Field(
        default_factory=default_home,
        description="Folder of the embedded database, dbt's artifacts and logs.",
    )
    embedded_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="TCP port of the embedded database on 127.0.0.1; 0 picks a free port and keeps it.",
    )
    embedded_idle: float = Field(
        default=600.0,
        ge=0,
        description="Seconds the embedded database stays up after the last command and the last connection.",
    )
    workers: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 16),
        ge=1,
        le=64,
        description="Processes with which `loader load` parses and copies, one connection each.",
    )
    threads: int = Field(
        # With more connections than cores, the largest table would end alone on one core.
        default_factory=lambda: min(max(os.cpu_count() or 1, 2), 4),
        ge=1,
        le=64,
        description="Connections with which `loader transform` splits events.",
    )
    tables: int = Field(
        default=200,
        ge=0,
        le=10_000,
        description="Tables that a source may get for events without a model. Further events are in `tracks` only.",
    )
    new_tables: int = Field(
        default=50,
        ge=0,
        le=10_000,
        description="Tables for events without a model that a source may get in an hour. The others follow in later "
        "hours.",
    )
    marts: bool = Field(
        default=True,
        description="Fill the marts after the tables: campaigns, recipients, subscriptions, conversions.",
    )
    vars: str = Field(
        default="",
        description="Variables of the marts, as YAML text or as `@` and the path of a file.",
    )
    marts_every: Duration = Field(
        default=60.0,
        description="Seconds between two runs of `loader schedule` that fill the marts; also as `30s`, `2m`, `1h`. The "
        "runs between fill the tables alone.",
    )
    widen_bytes: int = Field(
        default=100_000_000,
        ge=0,
        description="Largest table, in bytes, in which a run widens a column or builds an index. Widening rewrites the "
        "table while readers wait. `loader widen` and `loader index` do the same to larger tables.",
    )
    reader_indexes: bool = Field(
        default=True,
        description="Whether runs build the indexes that the models list. Existing indexes stay.",
    )
    lock_wait: float = Field(
        default=30.0,
        ge=0.001,
        le=86_400,
        description="Seconds that a run or another command waits for a lock of another session.",
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes of `loader serve`, all on one port.",
    )
    spool: Path | None = Field(
        default=None,
        description="Folder in which a collector keeps events while the database is away.",
    )
    spool_bytes: int = Field(
        default=1_000_000_000,
        ge=0,
        description="Bytes of events that the spool may hold. With 0, the collector answers 503 while the database is "
        "away.",
    )
    queue_bytes: int = Field(
        default=64_000_000,
        ge=1,
        description="Bytes of calls that a process may hold in memory. Beyond that, the process answers 503. A webhook"
        " of Iterable counts with the call that is made from it, some 2.3 times its body.",
    )
    commit_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds that the database may take for a batch of events before it counts as away.",
    )
    request_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Seconds that a client may take to send a request.",
    )
    event_bytes: int = Field(
        default=32_768,
        ge=1,
        description="Bytes one call of the tracking API may have.",
    )
    batch_bytes: int = Field(
        default=500_000,
        ge=1,
        description="Bytes a request of the tracking API may have, decompressed.",
    )
    batch_items: int = Field(
        default=2_500,
        ge=1,
        description="Calls a batch of the tracking API may have.",
    )
    webhook_bytes: int = Field(
        default=10_000_000,
        ge=1,
        description="Bytes a webhook's request may have, decompressed.",
    )
    webhook_header: str = Field(
        default="X-Write-Key",
        description="Header in which a webhook may send its write key, beside `Authorization`.",
    )
    segment_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Secret with which Segment signs its webhooks. When it is set, only signed webhooks are accepted.",
    )
    segment_answers: bool = Field(
        default=False,
        description="Answer as Segment does: 200 to an unknown write key, whose events are dropped, and to a call that "
        "can be read but goes to quarantine.",
    )
    segment_warehouse_id: str = Field(
        default="",
        description="Id of this warehouse in Segment's calls. A call whose integrations list `warehouseIds` without "
        "this id stays in raw and is in no table. Without this setting, the lists do not count.",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses or networks of proxies whose `X-Forwarded-For` is trusted, with commas between them.",
    )
    reader_url: SecretStr = Field(
        default=SecretStr(""),
        description="URL of a reader, with which `loader bi superset` connects Superset. Without it, the reader of "
        "the embedded database, or DATABASE_URL if that role is a reader.",
    )
    superset_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the user of Superset that imports the dashboards.",
    )
    every: Duration = Field(
        default=5.0,
        description="Seconds between two checks of `loader schedule` for new events; also as `30s`, `2m`, `1h`.",
    )

    def read_vars(self) -> str:
        """Return the variables of the marts as YAML text.

        Raises:
            UsageError: The file of the variables cannot be read.
        """
        if not self.vars.startswith("@"):
            return self.vars
        try:
            return Path(self.vars[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The variables in {self.vars[1:]} cannot be read: {error}. Check LOADER_VARS.") from None

    @property
    def spool_folder(self) -> Path:
        """The folder of the spool: the setting `spool`, by default `spool` in the loader's home."""
        return self.spool or self.home / "spool"


@cache
def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        UsageError: A variable holds something that is not a setting's value.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(f"{variable_name(str(e['loc'][0]))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"A setting cannot be read: {problems}. `loader --help` lists the settings.") from None


def unknown_variables() -> list[str]:
    """Return a warning for each variable that looks like a setting and is not a setting."""
    settings = [variable_name(field) for field in Settings.model_fields if field != "database_url"]
    problems = []
    for name in sorted(os.environ):
        if name.startswith("LOADER_") and name not in settings and name not in _OTHER_VARIABLES:
            # The common prefix is left out, because it would make any two names similar.
            close = get_close_matches(name.removeprefix("LOADER_"), [s.removeprefix("LOADER_") for s in settings], n=1)
            advice = f"perhaps LOADER_{close[0]} is meant" if close else "`loader --help` lists the settings"
            problems.append(f"{name} is not a setting, and has no effect: {advice}.")
    return problems


def read_duration(text: str) -> float:
    """Return the seconds of a duration such as `5s`, `2m`, `1h` or a plain number of seconds.

    Raises:
        ValueError: The text is not a duration, or is not between 0.1 s and a day.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([smh]?)", text.strip(), re.ASCII)
    seconds = float(found[1]) * _UNIT_SECONDS[found[2]] if found else 0.0
    if not 0.1 <= seconds <= 86_400:
        raise ValueError("the value must be a duration such as 5s, 2m or 1h, from 0.1s to 24h")
    return seconds


def variable_name(field: str) -> str:
    """Return the environment variable of a setting, e.g. `LOADER_HOME` for `home`."""
    name = field.upper()
    return name if name == "DATABASE_URL" else f"LOADER_{name}"


def describe() -> list[tuple[str, str, str]]:
    """Return variable, default and description of every setting, for `loader --help` and docs/commands.md."""
    described = []
    for name, field in Settings.model_fields.items():
        if name == "home":
            default = "~/.local/share/loader, /var/lib/loader for root"
        elif name == "workers":
            default = "number of cores, 16 at most"
        elif name == "threads":
            default = "number of cores, 2 at least and 4 at most"
        elif name == "spool":
            default = "spool under LOADER_HOME"
        elif isinstance(field.default, SecretStr):
            default = field.default.get_secret_value()
        elif isinstance(field.default, float):
            default = f"{field.default:g}"
        else:
            default = str(field.default)
        described.append((variable_name(name), default, field.description or ""))
    return described
