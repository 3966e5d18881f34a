"""The queue of deliveries: which number of deliveries is a batch, and which deliveries have no answer."""

from datetime import UTC, datetime

from loader.buffer.backlog import Backlog
from loader.errors import UnavailableError
from loader.events.model import Delivery, Event

NOW = datetime(2026, 3, 4, tzinfo=UTC)


def filled(count: int) -> tuple[Backlog, list[UnavailableError | None]]:
    """Return a queue with so many deliveries, and the list of the answers to come."""
    backlog = Backlog(10**6)
    answers: list[UnavailableError | None] = []
    for number in range(count):
        backlog.add(Delivery("iterable", "track", [Event(b"{}", 1, f"m{number}", "a", None)], [], NOW), answers.append)
    return backlog, answers


def test_half_of_the_deliveries_without_an_answer_are_a_full_batch() -> None:
    """With many senders, larger batches cost less for each event, and the other half gathers meanwhile."""
    backlog, answers = filled(100)
    assert backlog.full == 50
    batch = backlog.take(10**6, backlog.full)
    assert (len(batch), len(backlog), backlog.under_way, backlog.full) == (50, 50, 50, 50)
    backlog.answer(batch, None)
    assert answers == [None] * 50
    assert (len(backlog), backlog.under_way, backlog.full) == (50, 0, 25)


def test_a_full_batch_has_a_minimum_number_of_deliveries() -> None:
    """With few senders, a half of their deliveries would be too little for the fixed cost of a commit."""
    backlog, _ = filled(3)
    assert backlog.full > 3


def test_a_batch_has_all_deliveries_up_to_its_limit_of_bytes() -> None:
    """A batch without a number has all deliveries that its bytes permit."""
    backlog, _ = filled(100)
    assert len(backlog.take(20)) == 10
    assert len(backlog.take(10**6)) == 90
