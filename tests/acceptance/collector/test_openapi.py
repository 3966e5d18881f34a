"""The OpenAPI document: it is true for any request."""

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import loader
from tests.support.collector_thread import Entrance

DOCUMENT = json.loads((Path(loader.__file__).parent / "collector" / "openapi.json").read_text(encoding="utf-8"))
# One path of each route; the other names lead to the same code.
ALIASES = {"/v1/t", "/v1/i", "/v1/p", "/v1/s", "/v1/g", "/v1/a", "/v1/b", "/v1/import"}
SHARED = DOCUMENT["components"]["pathItems"]
LABELS = [
    f"{method.upper()} {path}"
    for path, item in DOCUMENT["paths"].items()
    for method in (SHARED[item["$ref"].rpartition("/")[2]] if "$ref" in item else item)
    if path not in ALIASES
]
# Requests that the document allows are accepted, unless two calls of different kinds have the same words.
EXACT = {f"POST /v1/{kind}" for kind in ("track", "identify", "page", "screen", "group", "alias", "batch", "m")}

# Each route with allowed requests, and with forbidden requests where the route has something to violate.
FUZZED = [
    (label, mode) for label in LABELS for mode in ("positive", "negative") if mode == "positive" or label[:4] == "POST"
]


def fuzz(entrance: Entrance, label: str, mode: str, examples: int) -> None:
    """Send allowed or forbidden requests, and compare every answer with the document."""
    # The import takes two seconds, and one process of a run needs it.
    import schemathesis  # noqa: PLC0415
    from schemathesis.checks import not_a_server_error, positive_data_acceptance  # noqa: PLC0415
    from schemathesis.generation import GenerationMode  # noqa: PLC0415
    from schemathesis.specs.openapi import checks  # noqa: PLC0415

    operations = (found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    [operation] = [each for each in operations if each.label == label]
    answer_checks = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(GenerationMode(mode)))
    def send(case: Any) -> None:
        # The generator names a compression and compresses nothing.
        case.headers.pop("Content-Encoding", None)
        is_webhook = "/webhooks/" in label
        response = case.call(
            base_url=f"http://127.0.0.1:{entrance.collector.port}",
            headers={"X-Write-Key": entrance.key} if is_webhook else None,
            auth=None if is_webhook else (entrance.key, ""),
        )
        exact = mode == "positive" and label in EXACT and case.media_type != "text/plain"
        case.validate_response(response, checks=answer_checks + [positive_data_acceptance] * exact)

    send()


@pytest.mark.parametrize(("label", "mode"), FUZZED)
def test_every_answer_is_as_documented(entrance: Entrance, label: str, mode: str) -> None:
    """Status, type, headers and body are documented. Allowed requests are accepted."""
    fuzz(entrance, label, mode, 5)


@pytest.mark.soak
@pytest.mark.parametrize(("label", "mode"), FUZZED)
def test_every_answer_to_many_requests_is_as_documented(entrance: Entrance, label: str, mode: str) -> None:
    """The same with more requests."""
    fuzz(entrance, label, mode, 1000)


def test_the_document_is_served(entrance: Entrance) -> None:
    """A tool needs only the address."""
    reply = entrance.collector.get("/openapi.json")
    assert (reply.status, reply.json) == (200, DOCUMENT)
