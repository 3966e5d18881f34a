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

    def _post(self, calls: Sequence[Call], bodies: Sequence[bytes]) -> Reply:
        """Send the bodies of calls in one request."""
        raise NotImplementedError

    def _post_or_shrink(self, calls: Sequence[Call], bodies: Sequence[bytes]) -> Reply:
        """Send calls; a single call that is too large for the receiver goes again without Iterable's own body."""
        reply = self._post(calls, bodies)
        if reply.status == _TOO_LARGE and len(calls) == 1 and (slim := calls[0].slim) and slim != bodies[0]:
            reply = self._post(calls, [slim])
        if reply.status == _TOO_LARGE and len(calls) == 1:
            return Reply(Outcome.REFUSED, reply.status, "too_large", reply.answer)
        return reply

    def _connect(self) -> HttpClient:
        """Return the kept connection, made for the first request."""
        self._client = self._client or HttpClient(receiver_url(self._options), self._options.ca_file or None)
        return self._client
