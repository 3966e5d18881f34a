"""Defines the values that pass between the parts of a delivery: calls, answers of a receiver, and receivers.

These are plain values. Nothing in this module does I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import msgspec

# Number of characters of an answer that a dead letter keeps.
ANSWER_CHARACTERS = 1000


class Call(msgspec.Struct, frozen=True, gc=False):
    """One call in the shape in which a destination gets it.

    Attributes:
        seq: The place of the event in the landing order.
        load_xid: The transaction that landed the event.
        source: The schema of the source.
        message_id: The id of the event.
        user: The user id, or else the anonymous id; calls of one user stay in order.
        received_at: The time of receipt, in ISO 8601.
        body: The call as JSON.
        slim: The same call without Iterable's own body; None if `body` has no such body.
    """

    seq: int
    load_xid: str
    source: str
    message_id: str
    user: str
    received_at: str
    body: bytes
    slim: bytes | None = None


class Outcome(Enum):
    """The meaning of an answer for the batch that was sent."""

    TAKEN = auto()
    """The receiver has the calls, except the calls that the reply lists."""
    AGAIN = auto()
    """The same batch may succeed later."""
    CONFIG = auto()
    """The receiver refuses the key or the address, so no batch would succeed."""
    REFUSED = auto()
    """The receiver refuses the content of the batch."""


@dataclass(frozen=True)
class Dead:
    """A call that a destination does not accept.

    Attributes:
        status: The status of the answer; None if no request was sent.
        reason: A code or a few words.
        answer: The beginning of the answer.
        retry_seconds: The wait before the worker tries the call again by itself; None if it does not.
        is_refusal: Whether the call itself was refused. False if its user has gone, or may be on the way.
        suppress: Digests of the keys of a user about whom nothing is sent any more.
    """

    call: Call
    status: int | None
    reason: str
    answer: str = ""
    retry_seconds: float | None = None
    is_refusal: bool = True
    suppress: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Reply:
    """The result of one attempt to send a batch.

    Attributes:
        outcome: The meaning for the batch.
        status: The status of the answer; 0 without an answer, None if no request was sent.
        reason: The reason of a failure, without secrets and without values of events.
        answer: The beginning of the answer.
        wait_seconds: The wait that the receiver asks for; None if it names none.
        dead: Calls of a taken batch that the receiver did not accept.
        singly: Calls of a taken batch of which some have failed; each goes once more, alone.
        culprits: Calls for which the receiver refused the batch; empty if the answer does not tell.
        notes: Remarks for the status of the destination, with their numbers.
    """

    outcome: Outcome
    status: int | None = None
    reason: str = ""
    answer: str = ""
    wait_seconds: float | None = None
    dead: Sequence[Dead] = ()
    singly: Sequence[Call] = ()
    culprits: Sequence[Call] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


class Receiver(Protocol):
    """The other side of a destination: divides calls into batches and sends one batch at a time."""

    page_events: int
    """Largest number of events that a delivery reads at once."""
    page_bytes: int
    """Largest size of these events, in bytes, as stored in the database."""
    batch_calls: int
    """Largest number of calls in a batch."""

    def admits(self, call: Call) -> bool:
        """Return whether a call goes to this receiver; other calls count as filtered."""

    def batches(self, calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
        """Divide calls into batches, in the order of their sending; each call is in one batch."""

    def send(self, calls: Sequence[Call], *, window: str) -> Reply:
        """Send one batch, in one attempt.

        Args:
            calls: The calls, at least one.
            window: The name of the open window, the same in each attempt.
        """

    def close(self) -> None:
        """Close connections."""


def chunks(calls: Sequence[Call], most_calls: int, most_bytes: int) -> Iterable[Sequence[Call]]:
    """Divide calls into runs of at most so many calls and bytes; a larger call is alone."""
    start = 0
    size = 0
    for place, call in enumerate(calls):
        if place > start and (place - start >= most_calls or size + len(call.body) > most_bytes):
            yield calls[start:place]
            start, size = place, 0
        size += len(call.body) + 1
    if start < len(calls):
        yield calls[start:]
