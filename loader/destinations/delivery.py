"""Delivers the events of one destination: reads them window by window, and moves the cursor after each answer.

The cursor moves only past events that the receiver has taken or refused, in the transaction that keeps the refused
ones. A process that is killed therefore repeats one batch at most, and loses none.
"""

import hashlib
import math
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from loader.destinations.clock import Clock
from loader.destinations.filters import Filters, read_filters
from loader.destinations.kinds import MARKING_KINDS, MakeReceiver, make_receiver
from loader.destinations.model import Call, Dead, Receiver
from loader.destinations.options import Options, read_options
from loader.destinations.sending import HaltedError, Sender
from loader.destinations.shaping import Shaper
from loader.destinations.shared import Shared
from loader.raw.dead_letters import accept_letters, fail_letter, read_due_letters, read_later_updates
from loader.raw.delivery_windows import (
    REMEMBERED_IDS,
    WINDOW_EVENTS,
    Cursor,
    DeadLetter,
    LandedCall,
    add_cursors,
    advance,
    close_window,
    count_window,
    open_window,
    read_cursors,
    read_page,
    read_recent_ids,
    read_suppressions,
    suppress,
)
from loader.raw.destinations import Destination, read_destination, read_warehouse_id

# A wrong mapping must not empty the queue into the dead letters: after so many refusals, a person must look.
MOST_REFUSALS_IN_A_ROW = 20
MOST_REFUSALS = 50
_REFUSALS_OF = 1000

# The waits before the worker tries a dead letter again by itself.
RETRY_SECONDS = (60.0, 300.0, 1800.0)

# A source whose calls the filters keep back is passed in larger windows, because its events are only counted.
_SKIPPED_EVENTS = 200_000


class _RecentIds:
    """The ids of the last calls of one source; a further call with such an id is repeated."""

    def __init__(self, latest_first: Sequence[str]) -> None:
        self._ids = dict.fromkeys(reversed(latest_first))

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._ids

    def add(self, message_ids: Sequence[str]) -> None:
        """Remember further ids, and forget the oldest."""
        self._ids.update(dict.fromkeys(message_ids))
        while len(self._ids) > REMEMBERED_IDS:
            del self._ids[next(iter(self._ids))]


class _PageProgress:
    """The events of a page that need no request, and the ids of its calls; both wait for the cursor to pass them."""

    def __init__(self) -> None:
        self._passed: deque[tuple[int, str]] = deque()
        self._ids: deque[tuple[int, str]] = deque()

    def pass_over(self, seq: int, outcome: str) -> None:
        """Add an event that needs no request."""
        self._passed.append((seq, outcome))

    def remember(self, seq: int, message_id: str) -> None:
        """Add the id of a call."""
        self._ids.append((seq, message_id))

    def take(self, position: int) -> tuple[Counter[str], list[str]]:
        """Return the numbers of such events, and the ids, up to a position; both leave the page."""
        counts: Counter[str] = Counter()
        while self._passed and self._passed[0][0] <= position:
            counts[self._passed.popleft()[1]] += 1
        ids = []
        while self._ids and self._ids[0][0] <= position:
            ids.append(self._ids.popleft()[1])
        return counts, ids


class Delivery:
    """The live delivery of one destination, or one of its replays.

    Args:
        connection: A connection in autocommit, which nothing else uses.
        destination_id: The destination.
        replay: 0 for the live delivery; else the number of the replay.
        clock: The clock.
        stop: Set when the process stops.
        shared: The knowledge of all deliveries of the destination; None if there is no other.
        patience_seconds: Seconds after which the delivery ends while its receiver takes nothing.
        make: Makes the receivers.

    Attributes:
        is_over: Whether there will be no work any more: the replay has ended, or the destination was removed.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        destination_id: int,
        replay: int,
        *,
        clock: Clock,
        stop: threading.Event,
        shared: Shared | None = None,
        patience_seconds: float = math.inf,
        make: MakeReceiver = make_receiver,
    ) -> None:
        self._connection = connection
        self._id = destination_id
        self._replay = replay
        self._clock = clock
        self._stop = stop
        self._make = make
        self._warehouse = read_warehouse_id(connection)
        self._destination: Destination | None = None
        self._options = Options()
        self._receivers: list[Receiver] = []
        self._shared = shared or Shared()
        self._patience_seconds = patience_seconds
        self._sender: Sender | None = None
        self._recent: dict[str, _RecentIds] = {}
        self._refusals: deque[bool] = deque(maxlen=_REFUSALS_OF)
        self._refusals_in_a_row = 0
        self.is_over = False

    def work(self) -> bool:
        """Deliver one window of each source, and dead letters that are due; return whether there was any work.

        Raises:
            MovedCursorError: The database was restored, or another worker delivers too.
            psycopg.Error: The database does not answer.
        """
        destination = read_destination(self._connection, self._id)
        self.is_over = destination is None
        if destination is None or destination.waits_for_person:
            return False
        if self._replay == 0:
            add_cursors(self._connection, self._id)
        has_worked = False
        cursors = read_cursors(self._connection, self._id, self._replay)
        self.is_over = self._replay > 0 and not cursors
        sender = self._use(destination, cursors[0].selection.get("rate", 0.0) if cursors else 0.0)
        try:
            for cursor in cursors:
                has_worked |= self._deliver_window(destination, sender, cursor)
            if self._replay == 0:
                has_worked |= self._retry_letters(destination, sender)
        except HaltedError:
            return False
        finally:
            sender.flush()
        return has_worked

    def close(self) -> None:
        """Record the last numbers of requests, and close the connections to the receiver."""
        try:
            if self._sender:
                self._sender.flush(at_once=True)
        finally:
            self._close_receivers()

    def _close_receivers(self) -> None:
        for receiver in self._receivers:
            receiver.close()
        self._receivers = []

    def _use(self, destination: Destination, own_rate: float) -> Sender:
        """Take over the settings of the destination, if they are new, and return the sender."""
        known, self._destination = self._destination, destination
        if self._sender is None or known is None or known.version != destination.version:
            if self._sender:
                self._sender.flush(at_once=True)
            self._close_receivers()
            self._options = read_options(destination.settings)
            self._shared.suppressed.update(read_suppressions(self._connection, self._id))
            self._receivers = [
                self._make(destination, self._clock, self._stop, self._shared) for _ in range(self._options.lanes)
            ]
            self._sender = Sender(
                self._connection,
                destination,
                self._clock,
                self._stop,
                pace=self._shared.pace,
                rate=self._options.rate,
                own_rate=own_rate,
                patience_seconds=self._patience_seconds,
            )
        self._sender.see(destination)
        return self._sender

    def _shaper(self, destination: Destination, filters: Filters, replayed: Sequence[str] = ()) -> Shaper:
        mark = self._warehouse if destination.kind in MARKING_KINDS else ""
        return Shaper(filters, destination.name, destination.kind, mark, replayed)

    def _deliver_window(self, destination: Destination, sender: Sender, cursor: Cursor) -> bool:
        window: Cursor | None = cursor
        if cursor.to_snapshot is None:
            coming = self._shaper(destination, read_filters(destination.filters))
            size = WINDOW_EVENTS if coming.admits_source(cursor.source) else _SKIPPED_EVENTS
            window = open_window(self._connection, cursor, events=size)
        if window is None:
            return False
        filters = read_filters(window.filters)
        shaper = self._shaper(destination, filters, window.selection.get("events") or ())
        if not shaper.admits_source(window.source):
            number, last_seq = count_window(self._connection, window)
            if number:
                window = advance(self._connection, window, last_seq, {"filtered": number})
            close_window(self._connection, window)
            return True
        receiver = self._receivers[0]
        if window.source not in self._recent:
            self._recent[window.source] = _RecentIds(read_recent_ids(self._connection, window))
        while True:
            page = read_page(
                self._connection,
                window,
                events=receiver.page_events,
                size=receiver.page_bytes,
                # The mark of Iterable's own events must be seen, although it does not go back to Iterable.
                with_native=filters.native or destination.kind == "iterable",
            )
            if page.calls:
                window = self._deliver_page(sender, shaper, window, page.calls)
            if page.is_last:
                close_window(self._connection, window)
                return True

    def _deliver_page(self, sender: Sender, shaper: Shaper, window: Cursor, landed: Sequence[LandedCall]) -> Cursor:
        progress = _PageProgress()
        calls: list[Call] = []
        receiver = self._receivers[0]
        recent, here = self._recent[window.source], set[str]()
        for each in landed:
            if not each.is_selected:
                continue
            if each.is_repeated or each.message_id in recent or each.message_id in here:
                progress.pass_over(each.seq, "repeated")
                continue
            here.add(each.message_id)
            progress.remember(each.seq, each.message_id)
            call = shaper.shape(each)
            if call is None or not receiver.admits(call):
                progress.pass_over(each.seq, "filtered")
            else:
                calls.append(call)
        deliver = self._one_by_one if self._options.lanes == 1 else self._in_lanes
        for done, dead in deliver(sender, calls, _window_name(window)):
            window = self._commit(sender, window, done[-1].seq, progress, done, dead)
        if landed[-1].seq > window.position:
            window = self._commit(sender, window, landed[-1].seq, progress)
        return window

    def _one_by_one(
        self, sender: Sender, calls: Sequence[Call], name: str
    ) -> Iterator[tuple[Sequence[Call], Sequence[Dead]]]:
        """Send one batch after the other.

        Yields:
            Calls without a gap before them, although a receiver may send calls in another order.
        """
        [receiver] = self._receivers
        outcomes: dict[int, Dead | None] = {}
        begin = 0
        for batch in receiver.batches(calls):
            for done, dead in sender.resolve(receiver, batch, name):
                outcomes |= {call.seq: None for call in done} | {each.call.seq: each for each in dead}
                end = begin
                while end < len(calls) and calls[end].seq in outcomes:
                    end += 1
                if end > begin:
                    part = calls[begin:end]
                    yield part, [each for call in part if (each := outcomes.pop(call.seq))]
                    begin = end

    def _in_lanes(
        self, sender: Sender, calls: Sequence[Call], name: str
    ) -> Iterator[tuple[Sequence[Call], Sequence[Dead]]]:
        """Send several batches at once; calls of one user are in one lane.

        Yields:
            Calls without a gap before them. Calls after the first unfinished call go again later.
        """
        lanes = len(self._receivers)
        size = self._receivers[0].batch_calls * lanes
        with ThreadPoolExecutor(lanes, "loader-lane") as threads:
            for start in range(0, len(calls), size):
                part = calls[start : start + size]
                shares = [[call for call in part if _lane(call.user, lanes) == number] for number in range(lanes)]
                results = list(threads.map(_send_share, [sender] * lanes, self._receivers, shares, [name] * lanes))
                outcomes = {call.seq: dead for done, _ in results for call, dead in done}
                undone = next((place for place, call in enumerate(part) if call.seq not in outcomes), len(part))
                if undone:
                    done = part[:undone]
                    yield done, [dead for call in done if (dead := outcomes[call.seq])]
                for _, error in results:
                    if error:
                        raise error

    def _commit(  # noqa: PLR0917 - each belongs to the step
        self,
        sender: Sender,
        window: Cursor,
        position: int,
        progress: _PageProgress,
        done: Sequence[Call] = (),
        dead: Sequence[Dead] = (),
    ) -> Cursor:
        """Move the cursor past calls that are done, and keep the calls that the receiver did not accept.

        Raises:
            HaltedError: The receiver refuses too many events.
        """
        counts, ids = progress.take(position)
        counts["delivered"] += len(done) - len(dead)
        counts["dead"] += len(dead)
        window = advance(self._connection, window, position, counts, [_letter(each, 0) for each in dead])
        self._shared.suppressed.update(digest for each in dead for digest in each.suppress)
        self._recent[window.source].add(ids)
        self._count_refusals(sender, done, dead)
        return window

    def _count_refusals(self, sender: Sender, done: Sequence[Call], dead: Sequence[Dead]) -> None:
        """Count the events that died, and pause the destination if there are too many.

        Raises:
            HaltedError: Too many events died. They do not count again after a person has resumed the destination.
        """
        refused = {each.call.seq for each in dead if each.is_refusal}
        for call in done:
            self._refusals.append(call.seq in refused)
            self._refusals_in_a_row = self._refusals_in_a_row + 1 if call.seq in refused else 0
        if self._refusals_in_a_row >= MOST_REFUSALS_IN_A_ROW:
            problem = f"{self._refusals_in_a_row} events in a row"
        elif len(self._refusals) == _REFUSALS_OF and sum(self._refusals) >= MOST_REFUSALS:
            problem = f"{sum(self._refusals)} of the last {_REFUSALS_OF} events"
        else:
            return
        self._refusals.clear()
        self._refusals_in_a_row = 0
        sender.reject(
            f"{problem} were refused ({_reasons(dead)}). `loader forward dead list {sender.name}` shows them. Correct"
            " the settings, or leave such events out with `loader destination filter`. Then run `loader destination"
            f" resume {sender.name}`."
        )

    def _retry_letters(self, destination: Destination, sender: Sender) -> bool:
        """Send the dead letters whose next try is due, and delete the accepted dead letters."""
        letters = read_due_letters(self._connection, self._id, moved_seconds=self._clock.ahead_seconds())
        if not letters:
            return False
        shaper = self._shaper(destination, read_filters(destination.filters))
        receiver = self._receivers[0]
        by_seq = {letter.call.seq: letter for letter in letters}
        landed = [letter.call for letter in letters]
        if destination.kind == "iterable":
            # An old update would replace the values of later updates, so the later updates go again. Each counts once.
            landed += read_later_updates(self._connection, self._id, letters)
        calls = []
        for each in sorted(landed, key=lambda call: call.seq):
            call = shaper.shape(each)
            if call is not None and receiver.admits(call):
                calls.append(call)
            elif each.seq in by_seq:
                fail_letter(self._connection, by_seq[each.seq].id, _kept_back(each))
        for batch in receiver.batches(calls):
            for done, dead in sender.resolve(receiver, batch, "retry"):
                failed = {each.call.seq: each for each in dead}
                tried = [(by_seq[call.seq], failed.get(call.seq)) for call in done if call.seq in by_seq]
                accept_letters(self._connection, [letter.id for letter, refusal in tried if refusal is None])
                for letter, refusal in tried:
                    if refusal is not None:
                        fail_letter(self._connection, letter.id, _letter(refusal, letter.attempts))
                        suppress(self._connection, self._id, refusal.suppress)
                        self._shared.suppressed.update(refusal.suppress)
        return True


def _send_share(
    sender: Sender, receiver: Receiver, calls: Sequence[Call], name: str
) -> tuple[list[tuple[Call, Dead | None]], Exception | None]:
    """Send the calls of one lane; return the calls that are done, and the error that ended the work."""
    outcomes: list[tuple[Call, Dead | None]] = []
    try:
        for batch in receiver.batches(calls):
            for done, dead in sender.resolve(receiver, batch, name):
                by_seq = {each.call.seq: each for each in dead}
                outcomes += [(call, by_seq.get(call.seq)) for call in done]
    except (HaltedError, psycopg.Error) as error:
        return outcomes, error
    return outcomes, None


def _window_name(window: Cursor) -> str:
    """Return a name of a window that stays the same while the window is open, and that no other delivery uses."""
    end = str(window.to_snapshot).split(":")[1]
    return f"{end}-replay{window.replay}" if window.replay else end


def _lane(user: str, lanes: int) -> int:
    return hashlib.sha256(user.encode()).digest()[0] % lanes


def _letter(dead: Dead, attempts: int) -> DeadLetter:
    call = dead.call
    retries = dead.retry_seconds is not None and attempts < len(RETRY_SECONDS)
    return DeadLetter(
        seq=call.seq,
        load_xid=call.load_xid,
        message_id=call.message_id,
        status=dead.status,
        reason=dead.reason,
        answer=dead.answer,
        retry_seconds=RETRY_SECONDS[attempts] if retries else None,
        suppress=dead.suppress,
    )


def _kept_back(call: LandedCall) -> DeadLetter:
    return DeadLetter(call.seq, call.load_xid, call.message_id, None, "filtered", "", None)


def _reasons(dead: Sequence[Dead]) -> str:
    return ", ".join(sorted({each.reason for each in dead}))
