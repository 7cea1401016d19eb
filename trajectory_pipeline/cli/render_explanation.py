"""Renders, for a terminal, how a run came to its verdict."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType, group
from rich.rule import Rule
from rich.text import Text

from trajectory_pipeline.cli.render_trajectory import indented, plain_text
from trajectory_pipeline.lossless_json import as_text, object_or_empty
from trajectory_pipeline.text import pluralize

_MAX_TURNS = 200


@group()
def render_explanation(explanation: Mapping[str, Any], data: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    """Render what ``explain_verdict`` returned, with the trajectory's document, None if Postgres does not hold it."""
    yield _rule("Source rows")
    yield _line("in the source now", _raw(explanation["source"]))
    yield _line("as captured", _raw(explanation["captured"]))
    yield _rule("Trajectory")
    yield from _turns(data, explanation["trajectory"])
    yield _rule("Signals")
    trajectory = explanation["trajectory"]
    for name, value in sorted((trajectory.get("signals") or {}).items()):
        if value:
            yield _line(name, value)
    reasoning = "; ".join(trajectory["heuristic_reasoning"])
    yield _line("heuristic outcome", f"{trajectory['heuristic_outcome']} ({reasoning})")
    yield _rule("What the judge was shown")
    yield from _shown(explanation["shown"])
    verdict = explanation["verdict"]
    if verdict is None:
        yield _rule("Verdict")
        yield plain_text(explanation["missing"])
        return
    yield _rule("What the judge answered, and what was checked")
    yield from _checked(verdict)
    yield _rule("Verdict")
    yield from _verdict(verdict, explanation)


def _rule(title: str) -> Rule:
    return Rule(title, align="left", style="dim")


def _line(name: str, value: object) -> Text:
    return Text.assemble((f"{name}: ", "dim"), plain_text(value))


def _raw(raw: Mapping[str, Any]) -> str:
    return raw.get("missing") or ", ".join(f"{name} {value}" for name, value in raw.items())


def _turns(data: Mapping[str, Any] | None, row: Mapping[str, Any]) -> Iterator[RenderableType]:
    if data is None:
        yield plain_text(f"The document is not in Postgres: {row['data_omitted_reason']}. Parquet has all of it.")
        return
    for number, turn in enumerate(data["turns"][:_MAX_TURNS], start=1):
        messages = [_message(message) for message in turn["messages"]]
        error = turn.get("error")
        failed = [f"✗ {error.get('type')}: {error.get('message')}"] if error else []
        yield _line(f"turn {number}", " · ".join([*messages, *failed]) or "no messages")
    if len(data["turns"]) > _MAX_TURNS:
        yield plain_text(f"… and {pluralize(len(data['turns']) - _MAX_TURNS, 'turn')} more: trajectory-pipeline show")


def _message(message: Mapping[str, Any]) -> str:
    names = (object_or_empty(call.get("function")).get("name") for call in message.get("tool_calls", ()))
    calls = [f"→ {as_text(name)}" for name in names]
    returns = [f"← {as_text(item.get('status'))}" for item in message.get("tool_returns", ())]
    return " ".join([str(message["kind"]), *calls, *returns])


def _shown(shown: Mapping[str, Any]) -> Iterator[RenderableType]:
    if "missing" in shown:
        yield plain_text(f"Unknown: {shown['missing']}.")
        return
    same = {
        True: "identical to what was judged",
        False: "different from what was judged: content, renderer, redaction or key changed since",
        None: "what was judged was not recorded, or nothing was judged",
    }[shown["same_as_judged"]]
    prompts = pluralize(len(shown["windows"]), "prompt")
    yield plain_text(
        f"Rendered and redacted again under the policy: {same}. {prompts}, about {shown['prompt_tokens']} tokens,"
        f" {shown['coverage']:.1%} of the content.",
        style="italic",
    )
    if not shown["windows"]:
        yield plain_text("It is too long for the judge.")
    if shown["context"]:
        yield plain_text("before each transcript, as context", style="bold")
        yield indented(shown["context"], 2)
    for number, text in enumerate(shown["windows"], start=1):
        if len(shown["windows"]) > 1:
            yield plain_text(f"prompt {number}", style="bold")
        yield indented(text, 2)


def _checked(verdict: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not verdict["requirements"]:
        yield plain_text("The judge gave no usable answer.")
        if verdict["raw_response"]:
            yield indented(verdict["raw_response"], 2)
        return
    for requirement in verdict["requirements"]:
        judged = requirement["judged_status"]
        changed = "" if judged == requirement["status"] else f" (the judge answered {judged})"
        kind = f" [{requirement['kind']}]" if "kind" in requirement else ""
        yield plain_text(f"{requirement['status']}{changed}: {requirement['statement']}{kind}", style="bold")
        yield from _evidence(requirement["evidence"])
        yield indented(_line("because", requirement["reasoning"]), 4)
    failure = verdict["failure"]
    if failure:
        problem = f" — does not count: {failure['problem']}" if failure["problem"] else ""
        yield plain_text(f"failure: owner {failure['owner']}, mode {failure['mode']}{problem}", style="bold")
        yield from _evidence(failure["evidence"])
        yield indented(_line("because", failure["reasoning"]), 4)


def _evidence(evidence: list[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not evidence:
        yield indented("no citation", 4, style="dim")
    for citation in evidence:
        mark = "✓" if citation["valid"] else "✗"
        why = f"source: {citation.get('source')}" if citation["valid"] else citation["problem"]
        quote = f"{mark} “{citation['quote']}” in {citation['message_id']} ({why})"
        yield indented(quote, 4, style="green" if citation["valid"] else "red")


def _verdict(verdict: Mapping[str, Any], explanation: Mapping[str, Any]) -> Iterator[RenderableType]:
    simulated = " (a simulation, not a model)" if verdict["simulated"] else ""
    yield _line("status", f"{verdict['verdict_status']}, by {verdict['model'] or 'no model'}{simulated}")
    yield _line("policy", f"{verdict['policy_id']}{'' if verdict['is_current'] else ' (not the current one)'}")
    if verdict["error_class"]:
        yield _line(verdict["error_class"], verdict["error_message"])
    if verdict["outcome"]:
        against = "disagrees with" if verdict["disagrees"] else "agrees with"
        yield _line("outcome", f"{verdict['outcome']}, confidence {verdict['outcome_confidence']}")
        yield _line("heuristic", f"it {against} the heuristic outcome {explanation['trajectory']['heuristic_outcome']}")
        yield _line("failure", f"{verdict['failure_owner']}, {verdict['failure_mode']}")
        yield _line("learning value", verdict["learning_value"])
    for name in ("summary", "lesson"):
        yield _line(name, verdict[name] or "-")
    cost = "not known" if verdict["cost_usd"] is None else f"{verdict['cost_usd']:f} USD"
    yield _line("cost", f"{cost}, {pluralize(verdict['attempts'], 'call')}")
    for attempt in explanation["attempts"]:
        price = "-" if attempt["cost_usd"] is None else f"{attempt['cost_usd']:f} USD"
        wrong = f", {attempt['error_class']}: {attempt['error_message']}" if attempt["error_class"] else ""
        yield indented(f"{attempt['started_at']} {attempt['result']}, {price}{wrong}", 4)
    for other in explanation["other_verdicts"]:
        name = f"repetition {other['repetition']}" if other["repetition"] else "another policy's verdict"
        yield _line(name, f"{other['policy_id']}: {other['verdict_status']} {other['outcome']}")
