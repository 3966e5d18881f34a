"""A self-hosted warehouse for Iterable's messaging events.

Data flows one way: bytes → Event → raw.events → collection tables. `docs/architecture.md` lists the packages and the
way of an event through them.
"""

__version__ = "0.1.0"
