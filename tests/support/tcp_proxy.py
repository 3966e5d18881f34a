"""A network between the loader and PostgreSQL that tests can break as real networks and servers break."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import make_url


class Proxy:
    """Passes connections on to a database until a test changes that.

    Args:
        url: The database's URL.
    """

    def __init__(self, url: str) -> None:
        target = make_url(url)
        assert target.host
        assert target.port
        self._target = (target.host, target.port)
        self._listening = self._listen(0)
        self.port: int = self._listening.getsockname()[1]
        self.url = target.set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)
        self._open: set[socket.socket] = set()
        self._hearing = threading.Event()
        self._hearing.set()
        self._left: int | None = None
        self._swallowed = b""
        self.delay = 0.0
        # Whether an end by the server becomes a reset, as from a kernel that has lost the connection.
        self.resetting = False
        self.happened = threading.Event()

    def stop(self) -> None:
        """End every connection, and refuse new connections."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.drop()

    def start(self) -> None:
        """Accept connections again."""
        self._listening = self._listen(self.port)

    def drop(self) -> None:
        """End every connection."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def deafen(self) -> None:
        """Accept connections and data, and never answer."""
        self._hearing.clear()

    def hear(self) -> None:
        """Pass data on again, including the data of the meantime."""
        self._hearing.set()

    def cut_after(self, size: int) -> None:
        """End every connection after so many further bytes from clients; then `happened` is set."""
        self.happened.clear()
        self._left = size

    def swallow(self, answer: bytes) -> None:
        """Pass on everything until a server's answer has these bytes; end the connection in place of the answer."""
        self.happened.clear()
        self._swallowed = answer

    def _listen(self, port: int) -> socket.socket:
        listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        return listening

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                self._open |= {client, server}
                for source, destination in ((client, server), (server, client)):
                    threading.Thread(
                        target=self._pump, args=(source, destination, source is client), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, destination: socket.socket, outward: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.delay:
                    threading.Event().wait(self.delay)
                self._hearing.wait()
                if outward and self._left is not None:
                    data, kept = data[: self._left], len(data)
                    self._left -= len(data)
                    if len(data) < kept:
                        destination.sendall(data)
                        self._left = None
                        self._break()
                        break
                if not outward and self._swallowed and self._swallowed in data:
                    self._swallowed = b""
                    self._break()
                    break
                destination.sendall(data)
        for end in (source, destination):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open -= {source, destination}
        if outward:
            return
        if self.resetting:
            destination.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (source, destination):
            end.close()

    def _break(self) -> None:
        self.drop()
        self.happened.set()


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """Run a proxy in front of a database until the end of the block."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.hear()
        proxy.stop()
