"""The common part of receivers that get any call over HTTP: the division into batches, and the kept connection."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from loader.destinations.http_client import HttpClient
from loader.destinations.model import Call, Outcome, Reply, chunks
from loader.destinations.options import Options, receiver_url

_TOO_LARGE = 413


class HttpReceiver:
    """A receiver that gets any call; its kinds add the requests.

    Args:
        options: The settings of the destination.
        now: Returns the present time.

    Attributes:
        usual_calls: The calls in a batch, if the settings name no number.
        batch_bytes: The largest size of the calls of a batch, in bytes.
    """

    page_events = 5_000
    page_bytes = 8_000_000
    usual_calls: int
    batch_bytes: int

    def __init__(self, options: Options, now: Callable[[], datetime]) -> None:
        self._options = options
        self.batch_calls = options.batch or self.usual_calls
        self._now = now
        self._client: HttpClient | None = None

    def admits(self, call: Call) -> bool:  # noqa: ARG002 - the receiver's interface
        """Return True: every call goes."""
        return True

    def batches(self, calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
        """Divide calls into batches of the largest number and size."""
        return chunks(calls, self.batch_calls, self.batch_bytes)

    def close(self) -> None:
        """Close the connection."""
        if self._client:
            self._client.close()

    def _connect(self) -> HttpClient:
        """Return the kept connection, made for the first request."""
        self._client = self._client or HttpClient(receiver_url(self._options), self._options.ca_file or None)
        return self._client


def post_or_shrink(
    calls: Sequence[Call], bodies: Sequence[bytes], post: Callable[[Sequence[Call], Sequence[bytes]], Reply]
) -> Reply:
    """Send calls; a single call that is too large for the receiver goes again without Iterable's own body.

    Args:
        calls: The calls of the request.
        bodies: The body of each call.
        post: Sends the bodies of calls in one request.
    """
    reply = post(calls, bodies)
    if reply.status != _TOO_LARGE or len(calls) > 1:
        return reply
    if (slim := calls[0].slim) and slim != bodies[0]:
        reply = post(calls, [slim])
    return Reply(Outcome.REFUSED, reply.status, "too_large", reply.answer) if reply.status == _TOO_LARGE else reply
