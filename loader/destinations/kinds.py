"""Makes the receiver of a destination by its kind."""

import threading
from collections.abc import Callable

from loader.destinations.clock import Clock
from loader.destinations.files import FilesReceiver
from loader.destinations.iterable import IterableReceiver
from loader.destinations.model import Receiver
from loader.destinations.options import read_options
from loader.destinations.segment import SegmentReceiver
from loader.destinations.shared import Shared
from loader.destinations.webhook import WebhookReceiver
from loader.raw.destinations import Destination

MakeReceiver = Callable[[Destination, Clock, threading.Event, Shared], Receiver]

# Kinds whose receivers may be another instance of this product, which must know its own calls when they come back.
MARKING_KINDS = frozenset({"segment", "webhook"})


def make_receiver(destination: Destination, clock: Clock, stop: threading.Event, shared: Shared) -> Receiver:
    """Return a receiver of a destination, which opens its connection with the first batch.

    Args:
        destination: The destination.
        clock: The clock.
        stop: Set when the process stops.
        shared: The knowledge of all deliveries of this destination.
    """
    options = read_options(destination.settings)
    match destination.kind:
        case "segment":
            return SegmentReceiver(options, clock.now)
        case "webhook":
            return WebhookReceiver(options, clock.now)
        case "iterable":
            return IterableReceiver(options, clock, stop, shared)
        case _:
            return FilesReceiver(options)
