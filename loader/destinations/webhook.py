"""Sends calls to any HTTP receiver, signed as the Standard Webhooks specification defines.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence

from loader.destinations.http_receiver import HttpReceiver, post_or_shrink
from loader.destinations.model import Call, Reply
from loader.destinations.replies import judge
from loader.destinations.secret_files import read_secret, read_secrets
from loader.errors import ConfigurationError
from loader.events.segment_signature import sign

_PREFIX = "whsec_"


class WebhookReceiver(HttpReceiver):
    """A receiver of webhooks, which gets single calls, or lists if the settings have a size of batches."""

    usual_calls = 1
    batch_bytes = 4_000_000

    def send(self, calls: Sequence[Call], *, window: str) -> Reply:  # noqa: ARG002 - the receiver's interface
        """Send one call, or a list of calls if the settings have a size of batches.

        Raises:
            ConfigurationError: A secret cannot be read.
        """
        return post_or_shrink(calls, [call.body for call in calls], self._post)

    def _post(self, calls: Sequence[Call], bodies: Sequence[bytes]) -> Reply:
        content = b"[%b]" % b",".join(bodies) if self._options.batch else bodies[0]
        message_id = webhook_id(calls) if self._options.batch else calls[0].message_id
        headers = {"Content-Type": "application/json"}
        headers |= signature_headers(
            _header_text(message_id),
            int(self._now().timestamp()),
            content,
            # A place has two secrets while the receiver changes from one to the other.
            [secret for reference in self._options.secrets for secret in read_secrets(reference)],
        )
        if self._options.segment_signature:
            headers["X-Signature"] = sign(content, read_secret(self._options.segment_signature))
        client = self._connect()
        return judge(client.post("", content, headers), client.host)


def webhook_id(calls: Sequence[Call]) -> str:
    """Return the id of a batch: a digest of the ids of its calls, the same in each attempt."""
    return hashlib.sha256("\n".join(call.message_id for call in calls).encode()).hexdigest()


def signature_headers(message_id: str, timestamp: int, content: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """Return the headers of a signed webhook, with one signature for each secret.

    Args:
        message_id: The id of the webhook.
        timestamp: The time of sending, in seconds since 1970.
        content: The body.
        secrets: The secrets, as `whsec_` and base64, or as any text.

    Raises:
        ConfigurationError: A secret begins with `whsec_` and is not base64.
    """
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if secrets:
        signed = b"%b.%d.%b" % (message_id.encode(), timestamp, content)
        signatures = (hmac.digest(_key(secret), signed, "sha256") for secret in secrets)
        headers["webhook-signature"] = " ".join(f"v1,{b64encode(signature).decode()}" for signature in signatures)
    return headers


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        return secret.encode()
    text = secret.removeprefix(_PREFIX)
    try:
        # Some tools leave out the padding.
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError("The secret of a webhook begins with whsec_, and the rest is not base64.") from None


def _header_text(message_id: str) -> str:
    """Return an id as a header can carry it: the id itself, or its digest if it has other characters."""
    if message_id.isascii() and message_id.isprintable() and message_id == message_id.strip():
        return message_id
    return hashlib.sha256(message_id.encode()).hexdigest()
