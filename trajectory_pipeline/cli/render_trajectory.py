"""Renders a trajectory for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType, group
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from trajectory_pipeline.cli.tables import grid
from trajectory_pipeline.conversion.message_parts import MessagePart, message_parts, message_role, tools_by_call
from trajectory_pipeline.text import pluralize

# An agent's text may hold escape sequences, which must not reach the terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_ROLE_STYLES = {"user": "bold cyan", "assistant": "bold green", "tool": "bold yellow", "approval": "bold magenta"}
_OUTCOME_STYLES = {"success": "green", "partial_success": "yellow", "failure": "red", "unknown": "white"}


@group()
def render_trajectory(
    row: Mapping[str, Any],
    verdict: Mapping[str, Any] | None,
    links: Mapping[str, list[str]],
    asked: Mapping[str, str],
) -> Iterator[RenderableType]:
    """Render a row of ``trajectory.trajectories`` and the run's row of ``trajectory.outcomes``, None if it has none.

    ``links`` holds run ids under ``continues`` and ``continued by``; ``asked`` the tools of the calls of the run that
    this one continues, by call id.
    """
    yield render_run(row, links, asked)
    yield _outcome(row)
    yield _verdict(verdict)


@group()
def render_run(
    row: Mapping[str, Any], links: Mapping[str, list[str]], asked: Mapping[str, str]
) -> Iterator[RenderableType]:
    """Render what happened in a run, without what anyone made of it."""
    yield _head(row, links)
    document = row["data"]
    if document is None:
        yield Text(f"The document is not in Postgres: {row['data_omitted_reason']}. Parquet has all of it.")
    else:
        tools = {**asked, **tools_by_call(document)}
        for number, turn in enumerate(document["turns"], start=1):
            yield from _turn(number, turn, tools)


def plain_text(content: object, style: str = "") -> Text:
    """Return text without effect on the terminal: markup and control sequences are printed."""
    return Text(str(content).replace("\r\n", "\n").translate(_CONTROL), style=style)


def indented(content: object, columns: int, style: str = "") -> Padding:
    """Return content, as plain text unless it already is text, this many columns to the right."""
    text = content if isinstance(content, Text) else plain_text(content, style)
    return Padding(text, (0, 0, 0, columns), expand=False)


def _head(row: Mapping[str, Any], links: Mapping[str, list[str]]) -> Panel:
    table = grid()
    seconds = "-" if row["duration_ns"] is None else f"{row['duration_ns'] / 1e9:.3f} s"
    tokens = f"{row['input_tokens']} in, {row['output_tokens']} out" if row["usage_reported"] else "not reported"
    cost = "not known" if row["cost_usd"] is None else f"{row['cost_usd']:f} USD"
    lines = {
        "run": row["run_id"],
        "source": row["source"],
        "agent": f"{row['agent_name'] or '-'} ({row['agent_type'] or 'type not known'}) {row['agent_id']}",
        "time": f"{row['start_time']} → {row['end_time']} ({seconds})",
        "ended": f"{row['status']}, stop reason {row['stop_reason'] or 'not recorded'}",
        "size": f"{pluralize(row['step_count'], 'step')}, {pluralize(row['message_count'], 'message')}",
        "models": ", ".join(row["models"]) or "-",
        "tools requested": "not known" if row["tools_requested"] is None else ", ".join(row["tools_requested"]) or "-",
        "tools used": ", ".join(row["tools_used"]) or "-",
        "tools denied": "not known" if row["tools_denied"] is None else ", ".join(row["tools_denied"]) or "-",
        "tokens": f"{tokens}; cost of the run {cost}",
        "partition": row["partition_key"],
        **{name: ", ".join(ids) for name, ids in links.items() if ids},
    }
    if row["deleted_at"] is not None:
        lines["deleted"] = f"gone from the source, noticed {row['deleted_at']}"
    for name, value in lines.items():
        table.add_row(plain_text(name, style="dim"), plain_text(value))
    return Panel(table, title="Run", title_align="left")


def _turn(number: int, turn: Mapping[str, Any], tools: Mapping[str, str]) -> Iterator[RenderableType]:
    owner = f" of {turn['step_run_id']}" if turn.get("step_run_id") else ""
    name = f"{turn['step_id']}{owner}" if turn["step_id"] else "messages without a step"
    yield plain_text(f"\nTurn {number} · {name} · {turn.get('model') or '-'}", style="bold")
    for message in turn["messages"]:
        deleted = " [deleted]" if message["is_deleted"] else ""
        yield indented(f"{message_role(message)}{deleted}", 2, style=_ROLE_STYLES.get(message["role"], "bold"))
        for part in message_parts(message):
            yield indented(_part(part, tools), 4)
    if turn.get("error"):
        yield indented(f"✗ {turn['error'].get('type')}: {turn['error'].get('message')}", 2, style="red")


def _part(part: MessagePart, tools: Mapping[str, str]) -> Text:
    match part.kind:
        case "text":
            return plain_text(part.text)
        case "reasoning":
            return plain_text(part.text, style="dim italic")
        case "call":
            return plain_text(f"→ {part.name}({part.text})", style="blue")
        case "return" | "error":
            return plain_text(f"← {part.name}: {part.text}", style="red" if part.kind == "error" else "")
        case "approval":
            reason = f": {part.text}" if part.text else ""
            tool = f"{tools[part.call_id]} " if part.call_id in tools else ""
            return plain_text(f"{part.name} {tool}{part.call_id}{reason}")
        case _:
            return plain_text(f"({part.name})", style="dim")


def _outcome(row: Mapping[str, Any]) -> Text:
    cause = f", cause {row['execution_cause']}" if row["execution_cause"] else ""
    outcome = plain_text(row["heuristic_outcome"], _OUTCOME_STYLES[row["heuristic_outcome"]])
    reasoning = f" (confidence {row['heuristic_confidence']}): {'; '.join(row['heuristic_reasoning'])}"
    lines = [
        Text.assemble(("\nExecution", "bold"), " ", plain_text(f"{row['execution_status']}{cause}")),
        Text.assemble(("Heuristic outcome", "bold"), " ", outcome, plain_text(reasoning)),
    ]
    error = row["error"] or {}
    if error:
        text = " ".join(str(error[name]) for name in ("type", "message", "detail") if error.get(name))
        lines.append(Text.assemble(("Error", "bold"), " ", plain_text(text)))
    return Text("\n").join(lines)


def _verdict(verdict: Mapping[str, Any] | None) -> RenderableType:
    if verdict is None or verdict["verdict_status"] is None:
        return Text.assemble(("Verdict", "bold"), " none under the current policy")
    judge = verdict["judge_model"] or "no judge"
    simulated = " — a simulation, not a model" if verdict["simulated"] else ""
    title = f"Verdict: {verdict['verdict_status']} · {judge}{simulated}"
    if verdict["verdict_status"] not in ("judged", "insufficient_evidence"):
        problem = plain_text(f"{verdict['error_class']}: {verdict.get('error_message') or ''}")
        return Panel(problem, title=plain_text(title), title_align="left")
    table = grid()
    if verdict["judge_cost_usd"] is not None:
        simulated_price = " (simulated price)" if verdict["simulated"] else ""
        table.add_row("cost", f"{verdict['judge_cost_usd']:f} USD{simulated_price}")
    if verdict["outcome"]:
        style = _OUTCOME_STYLES[verdict["outcome"]]
        outcome = f"{verdict['outcome']} (confidence {verdict['outcome_confidence']})"
        table.add_row("outcome", plain_text(outcome, style=style))
        table.add_row("learning value", str(verdict["learning_value"]))
        table.add_row("failure", f"{verdict['failure_owner']}, {verdict['failure_mode']}")
    for requirement in verdict["requirements"] or ():
        table.add_row(requirement["status"], plain_text(requirement["statement"]))
        for citation in requirement["evidence"]:
            mark = "✓" if citation["valid"] else f"✗ {citation['problem']}"
            table.add_row("", plain_text(f"{mark} “{citation['quote']}” {citation['message_id']}", style="dim"))
    table.add_row("summary", plain_text(verdict["summary"] or "-"))
    table.add_row("lesson", plain_text(verdict["lesson"] or "-"))
    table.add_row("tags", plain_text(", ".join(verdict["tags"] or ())))
    return Panel(table, title=plain_text(title), title_align="left")
