"""Makes the receiver of a destination by its kind."""

from collections.abc import Callable

from loader.destinations.clock import Clock
from loader.destinations.files import FilesReceiver
from loader.destinations.model import Receiver
from loader.destinations.options import read_options
from loader.destinations.segment import SegmentReceiver
from loader.destinations.webhook import WebhookReceiver
from loader.raw.destinations import Destination

MakeReceiver = Callable[[Destination, Clock], Receiver]

# Kinds whose receivers may be another instance of this product, which must know its own calls when they come back.
MARKING_KINDS = frozenset({"segment", "webhook"})


def make_receiver(destination: Destination, clock: Clock) -> Receiver:
    """Return a receiver of a destination, which opens its connection with the first batch."""
    options = read_options(destination.settings)
    match destination.kind:
        case "segment":
            return SegmentReceiver(options, clock.now)
        case "webhook":
            return WebhookReceiver(options, clock.now)
        case _:
            return FilesReceiver(options)
