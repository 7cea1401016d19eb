"""Point 3: the pipeline compared with a converter that reads one run at a time through an ORM.

The converter is written as a first version would be: models, three queries a run, one INSERT a run.
"""

import time
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.bench import FIRST_HOUR, Bench, capture, one_partition
from benchmarks.measuring import Result, timed
from trajectory_pipeline.urls import sqlalchemy_url

# A commit for each run would mostly measure the disk.
_RUNS_A_COMMIT = 100


class _Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: sa.JSON, list[Any]: sa.JSON}  # noqa: RUF012 - as SQLAlchemy wants it


class _Run(_Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    stop_reason: Mapped[str | None]
    agent_id: Mapped[str]
    organization_id: Mapped[str]
    conversation_id: Mapped[str | None]
    metadata_: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]


class _Step(_Base):
    __tablename__ = "steps"
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str | None]
    model: Mapped[str | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    stop_reason: Mapped[str | None]
    created_at: Mapped[datetime]


class _Message(_Base):
    __tablename__ = "messages"
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str | None]
    step_id: Mapped[str | None]
    sequence_id: Mapped[int]
    role: Mapped[str]
    content: Mapped[list[Any] | None]
    tool_calls: Mapped[list[Any]]
    tool_returns: Mapped[list[Any] | None]
    created_at: Mapped[datetime]


class _Document(_Base):
    __tablename__ = "orm_documents"
    run_id: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)


def measure(bench: Bench) -> Result:
    """Measure point 3."""
    result = Result("3", "Against one run at a time through an ORM")
    url = bench.letta(one_partition(bench.size.runs))
    taken: list[float] = []
    with bench.sinks() as sinks:
        with timed(taken):
            done = capture(url, sinks.database_url, str(sinks.folder))
        a_second = convert_one_at_a_time(url, sinks.database_url, bench.size.orm_runs)
    ours = done["trajectories"] / taken[0]
    result.add(
        "ORM: three queries and a JSON insert a run",
        a_second,
        "runs/s",
        note=f"{bench.size.orm_runs:,} of {done['trajectories']:,} runs, without digests, checks or Parquet",
    )
    result.add("the pipeline, both sinks", ours, "runs/s", note="all runs")
    result.add("the pipeline / ORM", ours / a_second, "×", at_least=6)
    return result


def convert_one_at_a_time(letta_url: str, database_url: str, runs: int) -> float:
    """Convert runs of the first hour one at a time; return how many it does in a second."""
    source = sa.create_engine(sqlalchemy_url(letta_url, "psycopg2"))
    target = sa.create_engine(sqlalchemy_url(database_url, "psycopg2"))
    _Base.metadata.tables["orm_documents"].create(target)
    start = FIRST_HOUR.replace(tzinfo=None)
    with Session(source) as reading, Session(target) as writing:
        terminal = sa.select(_Run.id).where(
            _Run.status.in_(("completed", "failed", "cancelled")),
            _Run.completed_at >= start,
            _Run.completed_at < start + timedelta(hours=1),
        )
        ids = reading.scalars(terminal.order_by(_Run.id).limit(runs)).all()
        started = time.perf_counter()
        for number, run_id in enumerate(ids, start=1):
            writing.add(_Document(run_id=run_id, data=_document(reading, run_id)))
            writing.flush()
            if number % _RUNS_A_COMMIT == 0:
                writing.commit()
            reading.expunge_all()
        writing.commit()
        taken = time.perf_counter() - started
    source.dispose()
    target.dispose()
    return len(ids) / taken


def _document(session: Session, run_id: str) -> dict[str, Any]:
    run = session.get_one(_Run, run_id)
    steps = session.scalars(sa.select(_Step).where(_Step.run_id == run_id).order_by(_Step.created_at)).all()
    of_run = sa.select(_Message).where(_Message.run_id == run_id).order_by(_Message.sequence_id)
    messages = session.scalars(of_run).all()
    return {
        "run_id": run.id,
        "metadata": {
            "agent_id": run.agent_id,
            "start_time": run.created_at.isoformat(),
            "end_time": run.completed_at and run.completed_at.isoformat(),
            "status": run.status,
            "stop_reason": run.stop_reason,
            "models": sorted({step.model for step in steps if step.model}),
            "input_tokens": sum(step.prompt_tokens for step in steps),
            "output_tokens": sum(step.completion_tokens for step in steps),
        },
        "turns": [
            {
                "step_id": step.id,
                "model": step.model,
                "messages": [
                    {
                        "message_id": message.id,
                        "role": message.role,
                        "content": message.content,
                        "tool_calls": message.tool_calls,
                        "tool_returns": message.tool_returns,
                        "timestamp": message.created_at.isoformat(),
                    }
                    for message in messages
                    if message.step_id == step.id
                ],
            }
            for step in steps
        ],
    }
