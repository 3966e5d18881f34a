"""The session with Superset: the order of its calls, and an error for each way in which Superset refuses."""

import json
from typing import Any

import pytest

from loader.bi.superset_api import Superset
from loader.errors import SupersetError, UsageError
from tests.support.superset_stub import CSRF, IMPORT, LOGIN, TEST, Answer, stub


def run(url: str) -> None:
    """Log in, check a connection and import an archive."""
    superset = Superset(url)
    superset.log_in("admin", "secret")
    superset.check_connection("postgresql://bi:p@db/warehouse")
    superset.import_assets(b"archive")


def error(message: str, **extra: Any) -> str:
    """Return an answer with an error, in Superset's form."""
    return json.dumps({"errors": [{"message": message, "extra": extra}]})


def test_an_import_logs_in_checks_the_connection_and_sends_the_archive() -> None:
    """Superset wants the token, the CSRF token and the page that a form comes from."""
    with stub() as server:
        run(f"{server.url}/")
    assert [path for path, _, _ in server.requests] == [LOGIN, CSRF, TEST, IMPORT]
    _, headers, body = server.requests[-1]
    assert headers["Authorization"] == "Bearer token"
    assert headers["X-CSRFToken"] == "csrf"
    assert headers["Referer"] == server.url
    assert b"archive" in body
    assert b'name="bundle"' in body


@pytest.mark.parametrize("url", ["localhost:8088", "ftp://host", "", "http://"])
def test_an_address_needs_http_and_a_host(url: str) -> None:
    """The error has an example."""
    with pytest.raises(UsageError, match="no address of Superset"):
        Superset(url)


def test_the_error_names_the_address_of_a_superset_that_is_down() -> None:
    """The port was free a moment ago."""
    with stub() as server:
        url = server.url
    with pytest.raises(SupersetError, match=rf"does not answer at {url}: Connection refused\. Start Superset"):
        run(url)


def test_the_error_names_a_host_that_does_not_exist() -> None:
    """The name is reserved for this purpose."""
    with pytest.raises(SupersetError, match=r"does not answer at http://superset\.invalid"):
        run("http://superset.invalid")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"login": (401, '{"message": "Not authorized"}')}, "refuses the user admin.*LOADER_SUPERSET_PASSWORD"),
        ({"login": (404, "<html>")}, r"not as Superset does \(status 404\)"),
        ({"login": (200, "<html>")}, r"not as Superset does \(status 200\)"),
        ({"login": (301, "https://bi.example/login")}, "redirects to https://bi.example/login"),
        ({"csrf": (500, "<html>")}, "failed with the status 500: no reason is given"),
        ({"test": (403, '{"message": "Forbidden"}')}, "no right for this step.*role Admin"),
        (
            {
                "test": (
                    400,
                    error("None [SQL: (psycopg2.OperationalError) no such host\n\n(Background on this error at: x)]"),
                )
            },
            "cannot connect to the database of the reader's URL: no such host. The host must be reachable",
        ),
        ({"test": (400, error('The password for "bi" is incorrect.'))}, 'URL: The password for "bi" is incorrect. The'),
        ({"upload": (403, '{"message": "Forbidden"}')}, "no right for this step"),
        (
            {
                "upload": (
                    422,
                    error("Error importing assets", **{"charts/a.yaml": {"params": ["Unknown"]}, "issue": 1}),
                )
            },
            r'refuses the dashboards: Error importing assets; \{"charts/a.yaml": \{"params": \["Unknown"\]\}\}',
        ),
        ({"upload": (422, '{"message": "No"}')}, "refuses the dashboards: No"),
    ],
)
def test_the_error_of_each_refusal_names_the_address_and_the_reason(changed: dict[str, Answer], message: str) -> None:
    """The error names the address, the reason and the next step."""
    with stub(**changed) as server, pytest.raises(SupersetError, match=message) as raised:
        run(server.url)
    assert server.url in str(raised.value)
