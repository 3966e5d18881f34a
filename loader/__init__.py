"""A self-hosted warehouse for Iterable's messaging events.

Data flows one way: bytes → Event → raw.events → collection tables. The modules are named after what they
know: `segment` turns bytes into events, `landing` writes them to the raw schema, `transform` runs dbt.
"""

__version__ = "0.1.0"
