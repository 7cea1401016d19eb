"""The repair turn: sends an unusable response back to the judge, with all that is wrong with it."""

from collections.abc import Sequence

from pydantic import BaseModel

from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.response_format import schema_instructions
from trajectory_pipeline.judge.transcript.truncate import cut

_MAX_CUT_OFF_CHARACTERS = 2000
"""Of an answer that was cut off: all of it would fill the context without help, and none would leave two turns of one
role in a row, which some servers refuse."""
_MAX_CHARACTERS_PER_TOKEN = 4
"""Of an answer of so many tokens: a longer text is no answer, and would cost more than the prompt."""


def repair_messages(
    messages: Sequence[dict[str, str]], call: CallRecord, raw_response: str | None, answer_type: type[BaseModel]
) -> list[dict[str, str]]:
    """Return the messages of a repair turn: those before, byte for byte, then the response and what is wrong with it.

    ``raw_response`` is None where nothing was left of an answer that was cut off. A text that is longer than an answer
    can be is repeated in part.
    """
    answer = cut(raw_response or "(nothing)", _MAX_CHARACTERS_PER_TOKEN * call.max_response_tokens)
    if call.error_class == "cut_off":
        answer = cut(answer, _MAX_CUT_OFF_CHARACTERS)
        instruction = (
            "Your answer was cut off because it is too long, so it cannot be used. Judge again and give the whole"
            " answer in less than half the length: fewer requirements, short evidence, reasoning and summary."
        )
    else:
        instruction = (
            f"Your answer cannot be used: {call.error_message}. Give the whole answer again with these mistakes"
            " mended, and nothing else changed."
        )
    if call.response_format != "prompt":
        # A server may ignore the format that it was asked for, and the model has then never seen the schema.
        instruction = f"{instruction}\n{schema_instructions(answer_type)}"
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": instruction}]
