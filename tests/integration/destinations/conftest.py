"""The fixtures of tests of deliveries."""

from tests.support.delivery_fixtures import connection, key, receiver

__all__ = ["connection", "key", "receiver"]
