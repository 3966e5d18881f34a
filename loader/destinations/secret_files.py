"""Reads secrets of other systems from the places that a destination names: a variable or a file.

The database holds only the place. A secret is read when it is needed, so a new secret in the same file works at once.
"""

import os
from pathlib import Path

from loader.errors import ConfigurationError, UsageError

_OTHERS_READ = 0o004


def check_reference(reference: str) -> str:
    """Return the place of a secret, such as `env:NAME` or `file:/path`.

    Raises:
        UsageError: The text is not such a place; the message does not repeat it, because it may be the secret.
    """
    kind, _, place = reference.partition(":")
    if kind not in {"env", "file"} or not place or (kind == "file" and not Path(place).is_absolute()):
        raise UsageError(
            "A secret is given by its place: env:NAME for a variable, or file:/path for a file with an absolute path."
        )
    return reference


def read_secret(reference: str) -> str:
    """Return a secret.

    Args:
        reference: The place of the secret.

    Raises:
        ConfigurationError: The place has no secret.
    """
    kind, _, place = reference.partition(":")
    if kind == "env":
        secret = os.environ.get(place, "")
        if not secret:
            raise ConfigurationError(f"The variable {place} is not set. Set it for the process that forwards.")
        return secret
    try:
        secret = Path(place).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(f"The secret in {place} cannot be read: {reason}.") from None
    if not secret:
        raise ConfigurationError(f"The file {place} is empty. Write the secret into it.")
    return secret


def read_secrets(reference: str) -> list[str]:
    """Return the secrets of a place, one a line; a place has two while one secret replaces the other.

    Args:
        reference: The place of the secrets.

    Raises:
        ConfigurationError: The place has no secret.
    """
    return [line.strip() for line in read_secret(reference).splitlines() if line.strip()]


def is_readable_by_others(reference: str) -> bool:
    """Return whether every user of this machine may read the file of a secret."""
    kind, _, place = reference.partition(":")
    try:
        return kind == "file" and bool(Path(place).stat().st_mode & _OTHERS_READ)
    except OSError:
        return False
