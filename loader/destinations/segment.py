"""Sends calls to a receiver with Segment's tracking API: Segment, RudderStack, Jitsu, or this product.

https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/#batch
"""

import gzip
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from loader.destinations.http_receiver import HttpReceiver, post_or_shrink
from loader.destinations.model import Call, Dead, Outcome, Reply
from loader.destinations.replies import judge
from loader.destinations.secret_files import read_secret
from loader.events.timestamps import iso_text

CALL_BYTES = 32_768
BATCH_BYTES = 450_000
BATCH_CALLS = 100

# A higher level would take several times as long for a few bytes.
_GZIP_LEVEL = 1


class _Verdict(msgspec.Struct):
    """The part of an answer that may contradict the status."""

    success: bool = True


_decode_verdict = msgspec.json.Decoder(_Verdict).decode


class SegmentReceiver(HttpReceiver):
    """A receiver with Segment's tracking API, which limits the calls and bytes of a batch."""

    usual_calls = BATCH_CALLS
    batch_bytes = BATCH_BYTES

    def send(self, calls: Sequence[Call], *, window: str) -> Reply:  # noqa: ARG002 - the receiver's interface
        """Send one batch; calls over the receiver's limit of bytes do not go.

        Raises:
            ConfigurationError: The key cannot be read.
        """
        bodies = {call: body for call in calls if (body := smallest_body(call, CALL_BYTES)) is not None}
        dead = [Dead(call, None, "too_large") for call in calls if call not in bodies]
        if not bodies:
            return Reply(Outcome.TAKEN, dead=dead)
        reply = post_or_shrink(list(bodies), list(bodies.values()), self._post)
        return replace(reply, dead=dead) if reply.outcome is Outcome.TAKEN else reply

    def _post(self, calls: Sequence[Call], bodies: Sequence[bytes]) -> Reply:  # noqa: ARG002 - the receiver's interface
        content = b'{"batch":[%b],"sentAt":"%b"}' % (b",".join(bodies), iso_text(self._now()).encode())
        key = read_secret(self._options.key)
        headers = {
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
            "Authorization": f"Basic {b64encode(f'{key}:'.encode()).decode()}",
        }
        client = self._connect()
        answer = client.post("/v1/batch", gzip.compress(content, _GZIP_LEVEL, mtime=0), headers)
        reply = judge(answer, client.host)
        if reply.outcome is Outcome.TAKEN and not _is_success(answer.body):
            return Reply(Outcome.REFUSED, answer.status, f"{client.host} answered success: false", reply.answer)
        return reply


def smallest_body(call: Call, limit: int) -> bytes | None:
    """Return the body of a call, without Iterable's own body if it is too large; None if it still is."""
    if len(call.body) <= limit:
        return call.body
    return call.slim if call.slim is not None and len(call.slim) <= limit else None


def _is_success(body: bytes) -> bool:
    """Return whether an answer with 200 means success; an answer that is not such an object does."""
    try:
        return _decode_verdict(body).success
    except msgspec.MsgspecError:
        return True
