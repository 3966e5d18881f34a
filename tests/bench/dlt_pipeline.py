"""Merges a file of track calls into PostgreSQL with dlt, one table for each event: the peer of a load and a transform.

It runs in an environment of its own, with the file and the URL of the database as arguments.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import dlt  # type: ignore[import-not-found]


def main(path: str, url: str) -> None:
    """Load the file in one run of a pipeline, as dlt's documentation shows for events with ids."""

    @dlt.resource(  # type: ignore[untyped-decorator]
        name="calls", primary_key="messageId", write_disposition="merge", table_name=lambda call: call["event"]
    )
    def calls() -> Iterator[list[dict[str, Any]]]:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - as in dlt's documentation
            lines = []
            for line in file:
                lines.append(json.loads(line))
                if len(lines) == 10_000:
                    yield lines
                    lines = []
            yield lines

    pipeline = dlt.pipeline("calls", destination=dlt.destinations.postgres(url), dataset_name="dlt_calls")
    pipeline.run(calls(), loader_file_format="csv")


if __name__ == "__main__":
    main(*sys.argv[1:])
