"""Prompts as the pipeline would write them: a hand-written stand-in for its renderer, which is not under test here."""

from __future__ import annotations

MARKER = "4f0c2a9be1"

ORDER_RUN = """\
[message-a] user step=- run=run-1
  Hello there! Please find order 4711.
  When will it arrive?
[message-b] assistant step=step-1 run=run-1
  (reasoning)
  I should look the order up.
  -> call call_1 find_order({"order": "4711"})
[message-c] tool step=step-1 run=run-1
  <- return call_1 status=success
  {"order": "4711", "arrives": "2025-03-04"}
[message-d] assistant step=step-2 run=run-1
  Your order 4711 will arrive on 4 March 2025.
"""

FAILED_TOOL_RUN = """\
[message-a] user step=- run=run-2
  Send the report to Ada.
[message-b] assistant step=step-1 run=run-2
  -> call call_1 send_email({"to": "ada"})
[message-c] tool step=step-1 run=run-2
  <- return call_1 status=error
  SMTPError: timed out after 30 s
[message-d] assistant step=step-2 run=run-2
  Done, the report is with Ada!
"""


def prompt_of(transcript: str, marker: str = MARKER) -> str:
    return f"Judge this run.\n\n<<<TRANSCRIPT {marker}\n{transcript}TRANSCRIPT {marker}>>>\nAnswer now."


def messages_of(transcript: str = ORDER_RUN) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You judge finished runs of agents. Answer in JSON."},
        {"role": "user", "content": prompt_of(transcript)},
    ]
