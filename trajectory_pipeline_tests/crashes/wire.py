"""A wire that can be cut: a TCP proxy before a Postgres server that ends a connection when it is told to."""

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

Cut = Callable[[bytes, int], bool]
"""Whether to cut: given a piece that came, and the bytes that came the same way before it."""


class Wire:
    """Listens on a port of its own and passes everything on, until a piece that is to be cut.

    Attributes:
        cuts: connections that were cut so far.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cuts = 0
        self.from_server: Cut = lambda piece, before: False
        self.from_client: Cut = lambda piece, before: False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The server's URL, by way of this wire."""
        login = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{self._listener.getsockname()[1]}"))

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.create_connection((self._parts.hostname or "", self._parts.port or 5432))
        passed = {client: 0, server: 0}
        with client, server, selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    piece = source.recv(65536)
                    cut = self.from_client if source is client else self.from_server
                    if not piece:
                        return
                    if cut(piece, passed[source]):
                        self.cuts += 1
                        return
                    passed[source] += len(piece)
                    target.sendall(piece)
