"""A provider over real HTTP whose answers a test chooses, for answers that no simulated fault gives."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Provider:
    """Answers every call by a function of its number (from 1): status, body (bytes or JSON), headers."""

    def __init__(self, answer: Callable[[int], tuple[int, Any, dict[str, str]]]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                provider.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                provider.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, body, headers = answer(len(provider.requests))
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(content: Any, **more: Any) -> dict[str, Any]:
    """A chat completion with this content."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "some-model",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        **more,
    }


ANSWER: dict[str, Any] = {
    "requirements": [
        {"statement": "s", "kind": "action", "evidence": [], "reasoning": "r", "status": "insufficient_evidence"}
    ],
    "failure": None,
    "learning": {
        "reasoning": "",
        "interaction_depth": 1,
        "task_complexity": 1,
        "tool_use": 1,
        "reference_value": 1,
    },
    "key_decisions": [],
    "summary": "s",
    "lesson": None,
    "tags": ["a", "b", "c"],
    "task_category": "other",
}
"""A valid answer."""
