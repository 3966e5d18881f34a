"""The collector as an ASGI application: its routes are those of its document, and each failure has an answer."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loader
from loader.buffer.batch_writer import BatchWriter
from loader.buffer.spool import Spool
from loader.collector.app import Collector
from loader.collector.warehouse_metrics import WarehouseMetrics
from loader.collector.write_keys import WriteKeys
from loader.postgres.warehouse import Warehouse
from loader.settings import Settings

DOCUMENT = json.loads((Path(loader.__file__).parent / "collector" / "openapi.json").read_text(encoding="utf-8"))


def unreachable() -> Any:
    """Act as a database that does not answer."""
    raise OSError("no database")


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    """A collector whose writer is not started."""
    warehouse = Warehouse()
    writer = BatchWriter(unreachable, Spool(tmp_path, 0), warehouse, queue_bytes=1, commit_seconds=1)
    keys = WriteKeys(unreachable, None, warehouse)
    return Collector(Settings.model_construct(), writer, keys, WarehouseMetrics(unreachable, list))


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    """Return the operations of a path, following a reference."""
    return DOCUMENT["components"]["pathItems"][item["$ref"].rsplit("/", 1)[1]] if "$ref" in item else item


def test_the_document_lists_exactly_the_routes_of_the_collector(collector: Collector) -> None:
    """The document has all methods of the routes and no others. It allows a slash at the end of a POST's path."""
    documented = {path: {method.upper() for method in resolved(item)} for path, item in DOCUMENT["paths"].items()}
    with_slash = {f"{path}/": methods for path, methods in documented.items() if "POST" in methods}
    assert {path: set(methods) for path, methods in collector.routes.items()} == documented | with_slash


def test_the_document_has_the_version_of_the_loader() -> None:
    """A person with a copy of the document can tell its version."""
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == loader.__version__


def test_every_reference_in_the_document_has_a_target() -> None:
    """Every reference has a target, and every component has a reference."""
    referred = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                referred.add(node["$ref"])
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(DOCUMENT)
    kinds = {kind: named for kind, named in DOCUMENT["components"].items() if kind != "securitySchemes"}
    assert referred == {f"#/components/{kind}/{name}" for kind, named in kinds.items() for name in named}
    schemes = {name for item in DOCUMENT["paths"].values() for operation in resolved(item).values()
               for choice in operation["security"] for name in choice}  # fmt: skip
    assert schemes == DOCUMENT["components"]["securitySchemes"].keys()


def answer(collector: Collector, path: str, receive: Callable[[], Any], method: str = "POST") -> tuple[int, Any]:
    """Return the response to a request."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": [], "query_string": b"", "client": None}
    asyncio.run(collector(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_an_internal_error_is_answered_with_500_without_its_cause(collector: Collector) -> None:
    """The client gets an error in JSON and may try again. Only the log has the cause."""

    async def receive() -> Any:
        raise ZeroDivisionError("something private")

    status, body = answer(collector, "/v1/track", receive)
    assert (status, body["success"], body["code"]) == (500, False, "internal_error")
    assert "private" not in json.dumps(body)


def test_a_cancelled_request_is_answered_with_503(collector: Collector) -> None:
    """The server cancels requests that last longer than its own end may take."""

    async def receive() -> Any:
        raise asyncio.CancelledError

    status, body = answer(collector, "/v1/track", receive)
    assert (status, body["code"]) == (503, "unavailable")


def test_a_write_key_that_cannot_be_looked_up_is_answered_with_503(collector: Collector) -> None:
    """While the database is away and no keys are saved, the client is asked to try again."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"writeKey":"k","userId":"u","event":"E"}', "more_body": False}

    assert answer(collector, "/v1/track", receive)[0] == 503
