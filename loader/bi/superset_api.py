"""Imports assets through the API of Superset."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests

from loader.errors import SupersetError, UsageError

# An import makes all assets in one request.
_SECONDS = 300.0
# psycopg2's message within SQLAlchemy's message.
_DRIVER_MESSAGE = re.compile(r"\(psycopg2\.\w+\)\s*(.*?)\s*(?:\(Background on this error|\Z)", re.DOTALL)


class Superset:
    """A session of one user with a Superset."""

    def __init__(self, url: str) -> None:
        """Prepare a session.

        Args:
            url: The address of Superset, such as http://localhost:8088.

        Raises:
            UsageError: The address is not one of HTTP.
        """
        if not re.match(r"https?://[^/]", url):
            raise UsageError(f"{url} is no address of Superset. Give it with --url, such as http://localhost:8088.")
        self.url = url.rstrip("/")
        self._session = requests.Session()
        # Without this header, errors come as pages.
        self._session.headers["Accept"] = "application/json"
        # Superset refuses a form from another page.
        self._session.headers["Referer"] = self.url

    def log_in(self, user: str, password: str) -> None:
        """Begin a session with the name and the password of a user.

        Raises:
            SupersetError: Superset does not answer, or refuses the user.
        """
        answer = self._call(
            "POST", "security/login", json={"username": user, "password": password, "provider": "db", "refresh": False}
        )
        if answer.status_code in {400, 401, 403}:
            raise SupersetError(
                f"Superset at {self.url} refuses the user {user}. Check --user and LOADER_SUPERSET_PASSWORD."
            )
        self._session.headers["Authorization"] = f"Bearer {self._read(answer)['access_token']}"
        self._session.headers["X-CSRFToken"] = self._read(self._call("GET", "security/csrf_token/"))["result"]

    def check_connection(self, url: str) -> None:
        """Let Superset connect to a database.

        Raises:
            SupersetError: Superset cannot connect to the database.
        """
        answer = self._call("POST", "database/test_connection/", json={"sqlalchemy_uri": url})
        if answer.status_code in {400, 422}:
            raise SupersetError(
                f"Superset at {self.url} cannot connect to the database of the reader's URL: {_reason(answer)}. The "
                "host must be reachable from Superset's machine. Superset needs the package psycopg2-binary."
            )
        self._read(answer)

    def import_assets(self, archive: bytes) -> None:
        """Make the assets of a ZIP archive, and overwrite assets that have the same UUIDs.

        Raises:
            SupersetError: Superset refuses the assets.
        """
        files = {"bundle": ("assets.zip", archive, "application/zip")}
        self._read(self._call("POST", "assets/import/", files=files))

    def _call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        with self._named_errors():
            answer = self._session.request(
                method, f"{self.url}/api/v1/{path}", timeout=_SECONDS, allow_redirects=False, **arguments
            )
        if answer.is_redirect:
            raise SupersetError(
                f"{self.url} redirects to {answer.headers['Location']}. Give the address of Superset itself with --url."
            )
        return answer

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise SupersetError(
                f"The certificate of {self.url} is not trusted: {_cause(error)}. REQUESTS_CA_BUNDLE may name a "
                "file with your certificate authority."
            ) from None
        except requests.Timeout:
            raise SupersetError(
                f"Superset at {self.url} did not answer within {_SECONDS:.0f} s. Look at its log, then run the command "
                "again."
            ) from None
        except (requests.RequestException, UnicodeError) as error:
            raise SupersetError(
                f"Superset does not answer at {self.url}: {_cause(error)}. Start Superset, or give its address with "
                "--url."
            ) from None

    def _read(self, answer: requests.Response) -> Any:
        """Return the JSON of an answer that must be a success."""
        if answer.status_code in {401, 403}:
            raise SupersetError(
                f"The user has no right for this step in Superset at {self.url}. Give the user the role Admin, or "
                "another user with --user."
            )
        if answer.status_code >= 500:
            raise SupersetError(
                f"Superset at {self.url} failed with the status {answer.status_code}: {_reason(answer)}. The log of "
                "Superset has the details."
            )
        try:
            content = answer.json()
        except requests.JSONDecodeError:
            content = None
        if content is None or answer.status_code == 404:
            raise SupersetError(
                f"{self.url} answers, but not as Superset does (status {answer.status_code}). Give the address of "
                "Superset with --url, with its path if it has one."
            )
        if answer.status_code != 200:
            raise SupersetError(f"Superset at {self.url} refuses the dashboards: {_reason(answer)}.")
        return content


def _reason(answer: requests.Response) -> str:
    """Return the reason that an answer of Superset names, in one line."""
    try:
        content = answer.json()
    except requests.JSONDecodeError:
        return "no reason is given"
    errors = content.get("errors") if isinstance(content, dict) else None
    if not errors:
        return str(content.get("message", "no reason is given") if isinstance(content, dict) else content)
    texts = []
    for error in errors:
        message = str(error.get("message", ""))
        found = _DRIVER_MESSAGE.search(message)
        details = {key: value for key, value in (error.get("extra") or {}).items() if str(key).endswith(".yaml")}
        texts.append(" ".join((found[1] if found else message).split()).rstrip("."))
        if details:
            texts.append(json.dumps(details, ensure_ascii=False))
    return "; ".join(texts)


def _cause(error: BaseException) -> str:
    """Return the first cause of an error of requests, without the objects that its text names."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(getattr(error, "strerror", None) or error).rstrip(".")
