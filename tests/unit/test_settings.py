"""The settings: the variable of each setting, and the error for an invalid value."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from loader.errors import UsageError
from loader.settings import Settings, default_home, describe, read_settings, unknown_variables, variable_name


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Read the environment again in each test, and after it."""
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


def test_defaults_need_no_environment() -> None:
    """Without variables, the configuration is complete: the embedded database in the user's own folder."""
    settings = read_settings()
    assert settings.database_url == ""
    assert settings.home == default_home()
    assert settings.workers == (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("DATABASE_URL", "postgresql://db/warehouse", "database_url", "postgresql://db/warehouse"),
        ("LOADER_HOME", "/srv/warehouse", "home", Path("/srv/warehouse")),
        ("LOADER_EMBEDDED_PORT", "5439", "embedded_port", 5439),
        ("LOADER_EMBEDDED_IDLE", "1.5", "embedded_idle", 1.5),
        ("LOADER_WORKERS", "3", "workers", 3),
        ("LOADER_THREADS", "9", "threads", 9),
        ("LOADER_TABLES", "5", "tables", 5),
        ("LOADER_NEW_TABLES", "6", "new_tables", 6),
        ("LOADER_MARTS", "false", "marts", False),
        ("LOADER_MARTS_EVERY", "30s", "marts_every", 30.0),
        ("LOADER_VARS", "{marts_time_zone: UTC}", "vars", "{marts_time_zone: UTC}"),
        ("LOADER_WIDEN_BYTES", "7", "widen_bytes", 7),
        ("LOADER_READER_INDEXES", "false", "reader_indexes", False),
        ("LOADER_LOCK_WAIT", "0.5", "lock_wait", 0.5),
        ("LOADER_PROCESSES", "2", "processes", 2),
        ("LOADER_SPOOL", "/srv/spool", "spool", Path("/srv/spool")),
        ("LOADER_SPOOL_BYTES", "0", "spool_bytes", 0),
        ("LOADER_QUEUE_BYTES", "7", "queue_bytes", 7),
        ("LOADER_COMMIT_SECONDS", "2.5", "commit_seconds", 2.5),
        ("LOADER_REQUEST_SECONDS", "3", "request_seconds", 3.0),
        ("LOADER_EVENT_BYTES", "8", "event_bytes", 8),
        ("LOADER_BATCH_BYTES", "9", "batch_bytes", 9),
        ("LOADER_BATCH_ITEMS", "10", "batch_items", 10),
        ("LOADER_WEBHOOK_BYTES", "11", "webhook_bytes", 11),
        ("LOADER_WEBHOOK_HEADER", "X-Token", "webhook_header", "X-Token"),
        ("LOADER_SEGMENT_SECRET", "shhh", "segment_secret", SecretStr("shhh")),
        ("LOADER_SEGMENT_ANSWERS", "true", "segment_answers", True),
        ("LOADER_SEGMENT_WAREHOUSE_ID", "wh_1", "segment_warehouse_id", "wh_1"),
        ("LOADER_TRUSTED_PROXIES", "10.0.0.0/8", "trusted_proxies", "10.0.0.0/8"),
        (
            "LOADER_READER_URL",
            "postgresql://bi:x@db/warehouse",
            "reader_url",
            SecretStr("postgresql://bi:x@db/warehouse"),
        ),
        ("LOADER_SUPERSET_PASSWORD", "shhh", "superset_password", SecretStr("shhh")),
        ("LOADER_EVERY", "2m", "every", 120.0),
    ],
)
def test_each_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    """Every documented variable reaches the setting it names."""
    monkeypatch.setenv(variable, value)
    assert getattr(read_settings(), field) == expected
    assert variable_name(field) == variable


def test_every_field_has_a_tested_variable() -> None:
    """A new setting without a test of its variable fails this test."""
    (mark,) = [m for m in test_each_variable_sets_its_field.pytestmark if m.name == "parametrize"]
    assert {field for _, _, field, _ in mark.args[1]} == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LOADER_WORKERS", "many"),
        ("LOADER_WORKERS", "0"),
        ("LOADER_WORKERS", "65"),
        ("LOADER_THREADS", "-1"),
        ("LOADER_EMBEDDED_PORT", "65536"),
        ("LOADER_EMBEDDED_IDLE", "-1"),
        ("LOADER_EMBEDDED_IDLE", "nan"),
        ("LOADER_LOCK_WAIT", "0"),
        ("LOADER_LOCK_WAIT", "nan"),
        ("LOADER_EVERY", "soon"),
    ],
)
def test_an_invalid_value_of_a_variable_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """The message names the variable and the help. The exit code means wrong use."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=rf"{variable}: .*`loader --help`") as raised:
        read_settings()
    assert raised.value.exit_code == 2


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """People can correct all values at once."""
    monkeypatch.setenv("LOADER_WORKERS", "many")
    monkeypatch.setenv("LOADER_THREADS", "few")
    with pytest.raises(UsageError, match=r"LOADER_WORKERS.*LOADER_THREADS"):
        read_settings()


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable means the default, not the current folder."""
    for name in Settings.model_fields:
        monkeypatch.setenv(variable_name(name), "")
    assert read_settings() == Settings()
    assert read_settings().home == default_home()


def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only variables of this product count."""
    monkeypatch.setenv("WORKERS", "many")
    monkeypatch.setenv("LOADER_NO_SUCH_SETTING", "1")
    assert read_settings() == Settings()


def test_d9_a_warning_names_a_misspelt_variable_and_the_probable_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable has no effect, so a warning names it."""
    for name in ("LOADER_HOEM", "LOADER_ZZZZ", "LOADER_HOME", "LOADER_SCHEMA", "OTHER_HOEM"):
        monkeypatch.setenv(name, "x")
    assert unknown_variables() == [
        "LOADER_HOEM is not a setting, and has no effect: perhaps LOADER_HOME is meant.",
        "LOADER_ZZZZ is not a setting, and has no effect: `loader --help` lists the settings.",
    ]


def test_every_setting_is_described() -> None:
    """The help shows each setting with its variable, a default and a sentence."""
    described = {variable: (default, text) for variable, default, text in describe()}
    assert list(described) == [variable_name(name) for name in Settings.model_fields]
    assert all(text.endswith(".") for _, text in described.values())
    without_default = {"DATABASE_URL", "LOADER_SEGMENT_SECRET", "LOADER_SEGMENT_WAREHOUSE_ID", "LOADER_VARS"}
    without_default |= {"LOADER_READER_URL", "LOADER_SUPERSET_PASSWORD"}
    assert all(default for variable, (default, _) in described.items() if variable not in without_default)
