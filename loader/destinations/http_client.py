"""Sends requests to one receiver over a kept connection, one attempt at a time.

No request is repeated here, and no redirect is followed. A secret goes to the configured address only. Errors name the
host and the class of the failure, because an address may contain a secret.
"""

import email.utils
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

import urllib3

from loader import __version__
from loader.errors import ConfigurationError, UsageError

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0

# No answer of a receiver is longer than this. The rest of a longer answer is not read.
_ANSWER_BYTES = 4_000_000
_LONGEST_WAIT_SECONDS = 3600.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SECONDS = re.compile(r"\d{1,9}(\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        status: The status; 0 if no answer came.
        body: The body.
        wait_seconds: The wait that the receiver asks for; None if it names none.
        failure: The reason why no answer came; empty after an answer.
        is_certificate_wrong: Whether the receiver's certificate was refused.
    """

    status: int
    body: bytes = b""
    wait_seconds: float | None = None
    failure: str = ""
    is_certificate_wrong: bool = False

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


def check_url(url: str, *, allow_http: bool) -> str:
    """Return the address of a receiver without a final slash.

    Args:
        url: The address.
        allow_http: Whether the connection may be unencrypted outside this machine.

    Raises:
        UsageError: The text is not an address, has a password, or is not encrypted; the message does not repeat it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in {"http", "https"} or port == 0 or not url.isprintable() or " " in url:
        raise UsageError("The URL of a receiver must look like https://host/path.")
    if parts.username is not None or parts.password is not None:
        raise UsageError("The URL of a receiver must not contain a password. Give the place of the secret instead.")
    if parts.scheme == "http" and host not in _LOOPBACK and not allow_http:
        raise UsageError(
            f"The connection to {host} would not be encrypted. Use https://, or --allow-http in a private network."
        )
    return url.rstrip("/")


@dataclass
class HttpClient:
    """A kept connection to one receiver.

    Args:
        url: The address, as `check_url` returns it.
        ca_file: A file with the certificates to trust; None for those of the system.
        silence_seconds: The longest wait for the next byte of an answer.

    Raises:
        ConfigurationError: The file of certificates cannot be read.
    """

    url: str
    ca_file: str | None = None
    silence_seconds: float = SILENCE_SECONDS
    _pool: urllib3.HTTPConnectionPool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self._path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.host = parts.hostname or ""
        options: dict[str, Any] = {}
        if parts.scheme == "https" and self.ca_file:
            try:
                options["ssl_context"] = ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:
                raise ConfigurationError(
                    f"The certificates in {self.ca_file} cannot be read: {error.strerror or error}. Check the file."
                ) from None
        self._pool = urllib3.connection_from_url(
            f"{parts.scheme}://{parts.netloc}",
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=self.silence_seconds),
            **options,
        )

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send one POST and return its answer, or the reason why none came.

        Args:
            path: The path below the client's address; empty for the address itself.
            body: The body.
            headers: Headers beside `User-Agent`.

        Raises:
            ConfigurationError: A header cannot be sent, because a secret has characters that no header may have.
        """
        sent = {"User-Agent": f"iterable-warehouse/{__version__}", **headers}
        if any(not value.isprintable() or not value.isascii() for value in sent.values()):
            raise ConfigurationError("A secret has characters that a header cannot carry. Check the secret.")
        try:
            answer = self._pool.urlopen(
                "POST",
                self._path + path or "/",
                body=body,
                headers=sent,
                redirect=False,
                retries=False,
                preload_content=False,
            )
            try:
                content = answer.read(_ANSWER_BYTES, decode_content=True)
                if answer.read(1):
                    answer.close()
            except urllib3.exceptions.DecodeError:
                # The status came, and decides. Only the text is lost.
                content = b""
                answer.close()
            finally:
                answer.release_conn()
        except urllib3.exceptions.SSLError as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, ssl.SSLCertVerificationError):
                reason = f"the certificate of {self.host} is not accepted: {cause.verify_message.rstrip('.')}"
                return Answer(0, failure=reason, is_certificate_wrong=True)
            return Answer(0, failure=f"no encrypted connection to {self.host}")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Answer(0, failure=f"no answer from {self.host}: {_describe(error)}")
        now = _read_date(answer.headers.get("Date", ""))
        return Answer(answer.status, content, read_wait(answer.headers.get("Retry-After"), now))

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()


def read_wait(header: str | None, now: float | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header names, at most an hour; None if it names no time.

    Args:
        header: Seconds, or a date.
        now: The receiver's present time in seconds since 1970; None for this machine's clock.
    """
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), _LONGEST_WAIT_SECONDS)
    moment = _read_date(text)
    if moment is None:
        return None
    return min(max(moment - (time.time() if now is None else now), 0.0), _LONGEST_WAIT_SECONDS)


def _describe(error: Exception) -> str:
    """Return the reason why no answer came; the error's own text may contain the address."""
    match error:
        case urllib3.exceptions.NameResolutionError():
            return "the name of the host is unknown"
        case urllib3.exceptions.NewConnectionError():
            return "a connection cannot be made"
        case urllib3.exceptions.ConnectTimeoutError():
            return f"no connection within {CONNECT_SECONDS:.0f} s"
        case urllib3.exceptions.ReadTimeoutError():
            return "the receiver was silent for too long"
        case urllib3.exceptions.ProtocolError():
            return "the connection broke"
    return type(error).__name__


def _read_date(text: str) -> float | None:
    """Return a date of HTTP in seconds since 1970; None if the text is none."""
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
