"""Shows how a destination would get the last events, and sends one marked event on request."""

import threading
import uuid
from dataclasses import dataclass

import msgspec
import psycopg

from loader.destinations.clock import SystemClock
from loader.destinations.filters import read_filters
from loader.destinations.kinds import make_receiver
from loader.destinations.model import Call, Outcome
from loader.destinations.shaping import Shaper
from loader.destinations.shared import Shared
from loader.errors import ConfigurationError
from loader.events.timestamps import iso_text
from loader.raw.delivery_windows import read_last_calls
from loader.raw.destinations import Destination

_EVENTS = 20
EVENT_NAME = "Loader Test"


@dataclass(frozen=True)
class Trial:
    """The result of a trial.

    Attributes:
        events: Number of events that were looked at.
        bodies: The calls that pass the filters, in their shape.
        reply: The receiver's answer to the marked event; empty if none was sent.
        is_accepted: Whether the receiver took the marked event.
    """

    events: int
    bodies: list[bytes]
    reply: str = ""
    is_accepted: bool = False


def try_destination(connection: psycopg.Connection, destination: Destination, *, send: bool) -> Trial:
    """Shape the last events as a destination would get them.

    Args:
        connection: A connection in autocommit.
        destination: The destination.
        send: Send one marked event to the receiver.
    """
    shaper = Shaper(read_filters(destination.filters), destination.name, destination.kind)
    last = read_last_calls(connection, _EVENTS)
    bodies = [call.body for each in last if (call := shaper.shape(each))]
    if not send:
        return Trial(len(last), bodies)
    clock = SystemClock()
    receiver = make_receiver(destination, clock, threading.Event(), Shared())
    try:
        reply = receiver.send([_marked_event(iso_text(clock.now()))], window="test")
    except ConfigurationError as error:
        return Trial(len(last), bodies, str(error))
    finally:
        receiver.close()
    dead = ", ".join(each.reason for each in reply.dead)
    text = dead or reply.reason or (f"status {reply.status}" if reply.status else "written")
    return Trial(len(last), bodies, text, reply.outcome is Outcome.TAKEN and not dead)


def _marked_event(now: str) -> Call:
    message_id = f"loader-test-{uuid.uuid4()}"
    body = {
        "type": "track",
        "event": EVENT_NAME,
        "userId": "loader-test",
        "messageId": message_id,
        "timestamp": now,
        "properties": {"test": True},
    }
    return Call(0, "0", "loader_test", message_id, "loader-test", now, msgspec.json.encode(body))
