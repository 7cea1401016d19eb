"""The simulated judge as a child process: serves until it is stopped, and ends with its owner."""

import http.client
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import uvicorn

from trajectory_pipeline.demo.simulated_judge.server import JudgeServer
from trajectory_pipeline.errors import JudgeError

_PARENT_POLL_SECONDS = 0.5
_STOP_SECONDS = 5.0


# ---- within the server's process ----------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    latency: float = 0.0,
    ready_file: Path | None = None,
    exit_with_parent: bool = False,
) -> None:
    """Print one line with the URL, then serve until a signal arrives or the parent ends.

    ``port`` 0 takes a free one. Raises JudgeError if the address is not a loopback address or cannot be bound.
    """
    if not is_loopback(host):
        raise JudgeError(f"The simulated judge answers this machine only: it cannot bind to {host!r}. Use 127.0.0.1.")
    if exit_with_parent:
        _exit_with_parent()
    listener = _listen(host, port)
    # The keep-alive outlasts any client's: a connection that the server closes first looks like a failed request.
    config = uvicorn.Config(
        JudgeServer(latency).app(),
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="critical",
        timeout_keep_alive=600,
        timeout_graceful_shutdown=1,
        backlog=4096,
        server_header=False,
    )
    _JudgeProcess(config, _url(host, listener), ready_file).run(sockets=[listener])


class _JudgeProcess(uvicorn.Server):
    """Reports its URL when it accepts connections."""

    def __init__(self, config: uvicorn.Config, url: str, ready_file: Path | None) -> None:
        super().__init__(config)
        self._url, self._ready_file = url, ready_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready_file is not None:
            _write_atomically(self._ready_file, f"{self._url}\n")
        print(f"simulated judge: {self._url}", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere the option would let two servers share one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise JudgeError(f"The simulated judge cannot listen on {host} port {port}: {error.strerror}.") from error
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"


def _write_atomically(path: Path, text: str) -> None:
    """Write a file atomically, for a process that waits for it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _exit_with_parent() -> None:
    """End this process when its parent ends.

    The parent holds the other end of standard input and never writes to it: the end of the file is the parent's end,
    even after kill -9, and on every system. A process that the parent forked may hold that end open as well, so the
    parent's id is watched besides.
    """
    parent = os.getppid()

    def watch_standard_input() -> None:
        try:
            # Not through sys.stdin: its lock would be held forever, and the interpreter could not exit.
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        os._exit(0)

    def watch_parent_id() -> None:
        waiting = threading.Event()
        while os.getppid() == parent:
            waiting.wait(_PARENT_POLL_SECONDS)
        os._exit(0)

    for watch in (watch_standard_input, watch_parent_id):
        threading.Thread(target=watch, name=watch.__name__, daemon=True).start()


# ---- within the owner's process -----------------------------------------------------------------------------------


class SimulatedJudge:
    """A running simulated judge in a process of its own, which ends with its owner.

    >>> with SimulatedJudge.start() as judge:  # doctest: +SKIP
    ...     client = openai.OpenAI(base_url=judge.base_url, api_key="none is needed")
    ...     client.chat.completions.create(model="simulated-judge", messages=[{"role": "user", "content": "Hello"}])
    """

    def __init__(self, process: subprocess.Popen[bytes], base_url: str) -> None:
        self._process = process
        self.base_url = base_url
        """``http://127.0.0.1:<port>/v1``: what ``OPENAI_BASE_URL`` is set to."""

    @classmethod
    def start(cls, *, latency: float = 0.0, host: str = "127.0.0.1", port: int = 0, ready_within: float = 30.0) -> Self:
        """Start the server and wait until it can be reached; ``latency`` is seconds a chat answer takes.

        Raises JudgeError, with what the server wrote, if it is not ready within ``ready_within`` seconds.
        """
        command = [
            sys.executable, "-m", "trajectory_pipeline.demo.simulated_judge", "--exit-with-parent",
            "--host", host, "--port", str(port), "--latency", str(latency),
        ]  # fmt: skip
        # A file, not a pipe, which would fill up unread. It has no name, so nothing remains.
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # Its own session: Ctrl-C in the terminal reaches only the owner, which then stops the server.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            url = _read_url(process, ready_within)
            if url is None:
                _stop_process(process)
                errors.seek(0)
                text = errors.read().decode(errors="replace").strip() or "It wrote nothing."
                raise JudgeError(f"The simulated judge was not ready within {ready_within:g} s. {text}")
        return cls(process, url)

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether the server's process is alive."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop the server and wait for its end; a second call has no effect."""
        _stop_process(self._process)

    def plan_faults(self, faults: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Append planned faults, for example ``[{"fault": "rate_limit", "times": 3}]``; returns all of them."""
        planned: list[dict[str, Any]] = self._control("POST", "/control/faults", list(faults))
        return planned

    def clear_faults(self) -> None:
        """Remove all planned faults."""
        self._control("DELETE", "/control/faults")

    def calls(self, last: int = 100) -> dict[str, Any]:
        """Return the usage log: counts, tokens, ``cost_usd`` as exact text, and the last calls."""
        usage: dict[str, Any] = self._control("GET", f"/control/calls?last={last}")
        return usage

    def reset_calls(self) -> None:
        """Reset the usage log."""
        self._control("DELETE", "/control/calls")

    def plan_batches(self, *plans: Mapping[str, Any]) -> None:
        """Plan what becomes of the next batches, one each: fields of ``batches.BatchPlan``."""
        self._control("POST", "/control/batches", list(plans))

    def batches(self) -> dict[str, Any]:
        """Return the batches and files of the server, and how many lines it worked on."""
        found: dict[str, Any] = self._control("GET", "/control/batches")
        return found

    def clear_batches(self) -> None:
        """Forget every batch, file and plan."""
        self._control("DELETE", "/control/batches")

    def _control(self, method: str, path: str, body: object = None) -> Any:
        # Not through urllib, which would ask a proxy from the environment for this very machine.
        authority = self.base_url.removeprefix("http://").partition("/")[0]
        connection = http.client.HTTPConnection(authority, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError as error:
            raise JudgeError(f"The simulated judge at {self.base_url} does not answer: {error}.") from error
        finally:
            connection.close()
        if response.status != 200:
            raise JudgeError(f"The simulated judge refused {method} {path}: {answer['error']['message']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _read_url(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """Wait for the one line that the server prints; a thread reads it, as no portable read has a time limit."""
    lines: list[bytes] = []
    output = process.stdout
    if output is None:
        return None
    reader = threading.Thread(target=lambda out: lines.append(out.readline()), args=(output,), daemon=True)
    reader.start()
    reader.join(seconds)
    text = lines[0].decode().strip() if lines else ""
    return text.rpartition(" ")[2] if text.startswith("simulated judge: ") else None


def _stop_process(process: subprocess.Popen[bytes]) -> None:
    _close(process.stdin)  # the end of its standard input is what the server ends at
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _close(process.stdout)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None and not stream.closed:
        stream.close()
