"""A child process of the tests: it sends back all objects that it receives."""

import sys
from multiprocessing.connection import Connection


def main(descriptor: str) -> None:
    """Send back each object until the pipe closes; after `print`, print a line first."""
    pipe = Connection(int(descriptor))
    try:
        while True:
            message = pipe.recv()
            if message == "print":
                sys.stdout.write("printed by the child\n")
                sys.stdout.flush()
            pipe.send(message)
    except (EOFError, OSError):
        return
