"""Calls one tool by the official MCP client and prints the answer: ``python -m trajectory_pipeline.serve.mcp_call``.

Takes the address of the service's ``/mcp``, a tool, and its arguments as JSON. A token comes from the variable
``TRAJECTORY_TOKEN``.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

try:
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client
    from mcp_types import TextContent
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"The MCP client needs {error.name}, which {sys.executable} lacks: use the Python of the project's environment"
        " (.venv/bin/python), or pip install 'trajectory-pipeline[serve]'."
    )


async def call_tool(address: str, tool: str, arguments: dict[str, Any], token: str | None = None) -> tuple[str, bool]:
    """Return the text of a tool's answer, and whether it is an error; a service that refuses, or is not there, is one.

    The client's own errors do not say why: what the service answered does.
    """
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    refused: list[str] = []

    async def note(response: httpx2.Response) -> None:
        if response.is_error:
            refused.append(f"{response.status_code}, {(await response.aread()).decode(errors='replace')[:500]}")

    try:
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60, event_hooks={"response": [note]}) as http,
            Client(streamable_http_client(address, http_client=http)) as client,
        ):
            answer = await client.call_tool(tool, arguments)
    except Exception:
        why = refused[-1] if refused else "is the service there?"
        return f"{address} gave no answer: {why} A token is taken from TRAJECTORY_TOKEN.", True
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent)), bool(answer.is_error)


def main() -> None:
    """Call the tool that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m trajectory_pipeline.serve.mcp_call", description=__doc__)
    parser.add_argument("address", help="for example http://127.0.0.1:8321/mcp")
    parser.add_argument("tool", help="for example find_similar_runs")
    parser.add_argument(
        "arguments", help='a JSON object, for example \'{"query": "refund refused"}\'', type=_json_object
    )
    given = parser.parse_args()
    token = os.environ.get("TRAJECTORY_TOKEN")
    text, failed = asyncio.run(call_tool(given.address, given.tool, given.arguments, token))
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever reads has enough. What is flushed at the end of this process goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1 if failed else 0)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"this is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("write a JSON object, such as {}")
    return value


if __name__ == "__main__":
    main()
