"""Clients of an HTTP service that cost little themselves: one thread, sockets that stay open, and no library.

Each client sends one request, reads the whole answer, and sends the next: at once, or when its time has come. Times
come at random, whether the answer before is there or not: a request that is late because of it counts from when it was
due.
"""

import heapq
import random
import selectors
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

_READ = 262_144


@dataclass
class _Client:
    connection: socket.socket | None
    due: float
    waiting: bool = False
    received: bytearray = field(default_factory=bytearray)


def load(
    port: int, token: str, paths_file: str, clients: int, seconds: float, interval: float, seed: int
) -> dict[str, object]:
    """Ask for a while; call it in a process of its own, whose processor time is then that of the clients.

    Args:
        port: of the service, on 127.0.0.1.
        token: of all requests.
        paths_file: with paths, one on each line, of which each request takes one at random.
        clients: at once.
        seconds: for how long requests are sent.
        interval: seconds from one request of a client to its next, on average; 0: as soon as the answer is there.
        seed: of the choice of paths.

    Returns:
        ``milliseconds`` of each answer, in order of arrival, ``seconds`` until the last one, and how many ``failed``.
    """
    rng = random.Random(seed)
    head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    paths = Path(paths_file).read_text(encoding="ascii").splitlines()
    requests = [f"GET {path} HTTP/1.1\r\n{head}".encode() for path in paths]
    selector = selectors.DefaultSelector()
    began = time.perf_counter()
    all_clients = []
    for _ in range(clients):
        all_clients.append(_Client(None, began + interval * rng.random()))
        _connect(all_clients[-1], port, selector)
    pending = [(client.due, number) for number, client in enumerate(all_clients)]
    heapq.heapify(pending)
    taken: list[float] = []
    running = failed = 0
    while pending or running:
        now = time.perf_counter()
        while pending and pending[0][0] <= now:
            client = all_clients[heapq.heappop(pending)[1]]
            connection = client.connection or _connect(client, port, selector)
            connection.sendall(rng.choice(requests))
            client.waiting = True
            running += 1
        wait = max(pending[0][0] - now, 0) if pending else None
        for key, _ in selector.select(wait):
            client = key.data
            received = client.connection.recv(_READ)
            if not received:
                # The service closes a connection that was idle for some seconds, perhaps just when it is used again.
                if client.received:
                    raise RuntimeError("the service closed a connection in the middle of an answer")
                selector.unregister(client.connection)
                client.connection.close()
                client.connection = None
                if client.waiting:
                    _connect(client, port, selector).sendall(rng.choice(requests))
                continue
            client.received += received
            if not _is_complete(client.received):
                continue
            failed += not client.received.startswith(b"HTTP/1.1 200")
            client.received.clear()
            client.waiting = False
            running -= 1
            ended = time.perf_counter()
            taken.append((ended - client.due) * 1_000)
            client.due = client.due + rng.expovariate(1 / interval) if interval else ended
            if client.due < began + seconds:
                heapq.heappush(pending, (client.due, all_clients.index(client)))
    for client in all_clients:
        if client.connection is not None:
            client.connection.close()
    return {"milliseconds": taken, "seconds": time.perf_counter() - began, "failed": failed}


def _connect(client: _Client, port: int, selector: selectors.BaseSelector) -> socket.socket:
    client.connection = socket.create_connection(("127.0.0.1", port))
    client.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(client.connection, selectors.EVENT_READ, client)
    return client.connection


def _is_complete(received: bytearray) -> bool:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = bytes(received[:end]).lower()
    at = head.find(b"content-length:")
    if at < 0:
        raise RuntimeError(f"an answer without a length: {head.decode(errors='replace')}")
    stop = head.find(b"\r\n", at)
    return len(received) >= end + 4 + int(head[at + 15 : stop if stop >= 0 else len(head)])
