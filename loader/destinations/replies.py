"""Judges the answers of receivers by their HTTP status, the same for each kind of destination."""

from loader.destinations.http_client import Answer
from loader.destinations.model import ANSWER_CHARACTERS, Outcome, Reply

_AGAIN = frozenset({408, 425, 429})
_CONFIG = frozenset({401, 403, 404, 410})


def judge(answer: Answer, host: str) -> Reply:
    """Return the meaning of an answer for its batch; the status alone decides.

    Args:
        answer: The answer.
        host: The host of the receiver, for the reason of a failure.
    """
    status = answer.status
    if answer.failure:
        outcome = Outcome.CONFIG if answer.is_certificate_wrong else Outcome.AGAIN
        return Reply(outcome, 0, answer.failure)
    kept = answer.text[:ANSWER_CHARACTERS].replace("\x00", "\ufffd")
    if 200 <= status < 300:
        return Reply(Outcome.TAKEN, status, answer=kept)
    reason = f"{host} answered {status}"
    if status in _AGAIN or status >= 500:
        return Reply(Outcome.AGAIN, status, reason, kept, answer.wait_seconds)
    if status in _CONFIG or status < 400:
        advice = "a redirect is not followed" if status < 400 else "check the key and the address"
        return Reply(Outcome.CONFIG, status, f"{reason}: {advice}", kept)
    return Reply(Outcome.REFUSED, status, reason, kept)
