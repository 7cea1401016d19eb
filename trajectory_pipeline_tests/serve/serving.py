"""A running service: uvicorn in a thread of this process, on a port of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from trajectory_pipeline.serve.app import create_app
from trajectory_pipeline.serve.http_protocol import server_config
from trajectory_pipeline.serve.service import make_service
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.storage import Storage


@contextmanager
def serving(settings: Settings, storage: Storage, *, loopback: bool = True, **options: Any) -> Iterator[str]:
    """Serve these sinks; yields the address."""
    with storage.pooled() as pooled:
        app = create_app(make_service(settings, pooled, loopback=loopback, **options))
        server = uvicorn.Server(server_config(app, "127.0.0.1", 0))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
