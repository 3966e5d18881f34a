"""The fixtures of tests of the commands."""

from tests.support.delivery_fixtures import connection, key, receiver

__all__ = ["connection", "key", "receiver"]
