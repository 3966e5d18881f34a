"""The OpenAPI document: it is true for any request."""

import json
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error, positive_data_acceptance
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import loader
from tests.support.collector_thread import Entrance

DOCUMENT = json.loads((Path(loader.__file__).parent / "collector" / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = {found.ok().label: found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()}
# One path of each route; the other names lead to the same code.
LABELS = [
    label
    for label in OPERATIONS
    if label.split()[1] not in {"/v1/t", "/v1/i", "/v1/p", "/v1/s", "/v1/g", "/v1/a", "/v1/b", "/v1/import"}
]
# Requests that the document allows are accepted, unless two calls of different kinds have the same words.
EXACT = {f"POST /v1/{kind}" for kind in ("track", "identify", "page", "screen", "group", "alias", "batch", "m")}

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


# Each route with allowed requests, and with forbidden requests where the route has something to violate.
FUZZED = [(label, mode) for label in LABELS for mode in GenerationMode if mode.is_positive or label.startswith("POST")]


def fuzz(entrance: Entrance, label: str, mode: GenerationMode, examples: int) -> None:
    """Send allowed or forbidden requests, and compare every answer with the document."""

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=OPERATIONS[label].as_strategy(mode))
    def send(case: schemathesis.Case) -> None:
        # The generator names a compression and compresses nothing.
        case.headers.pop("Content-Encoding", None)
        is_webhook = "/webhooks/" in label
        response = case.call(
            base_url=f"http://127.0.0.1:{entrance.collector.port}",
            headers={"X-Write-Key": entrance.key} if is_webhook else None,
            auth=None if is_webhook else (entrance.key, ""),
        )
        exact = mode.is_positive and label in EXACT and case.media_type != "text/plain"
        case.validate_response(response, checks=[*CHECKS, positive_data_acceptance] if exact else CHECKS)

    send()


@pytest.mark.parametrize(("label", "mode"), FUZZED)
def test_every_answer_is_as_documented(entrance: Entrance, label: str, mode: GenerationMode) -> None:
    """Status, type, headers and body are documented. Allowed requests are accepted."""
    fuzz(entrance, label, mode, 12)


@pytest.mark.soak
@pytest.mark.parametrize(("label", "mode"), FUZZED)
def test_every_answer_is_as_documented_for_long(entrance: Entrance, label: str, mode: GenerationMode) -> None:
    """The same with more requests."""
    fuzz(entrance, label, mode, 1000)


def test_the_document_is_served(entrance: Entrance) -> None:
    """A tool needs only the address."""
    reply = entrance.collector.get("/openapi.json")
    assert (reply.status, reply.json) == (200, DOCUMENT)
