"""Calls one tool by the official MCP client and prints the answer: ``python -m trajectory_pipeline.serve.mcp_call``.

Takes the address of the service's ``/mcp``, a tool, and its arguments as JSON. A token comes from the variable
``TRAJECTORY_TOKEN``.
"""

import asyncio
import json
import os
import sys
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent


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
    address, tool, arguments = sys.argv[1:]
    text, failed = asyncio.run(call_tool(address, tool, json.loads(arguments), os.environ.get("TRAJECTORY_TOKEN")))
    print(text)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
