"""Point 12: the report over 100,000 judged trajectories of a year."""

from pathlib import Path

import psycopg

from benchmarks.bench import Bench
from benchmarks.many_rows import AGENTS, multiply, multiply_verdicts
from benchmarks.measuring import Result, in_child
from trajectory_pipeline.budget.caps import Budget
from trajectory_pipeline.budget.prices import load_prices
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.demo.simulated_judge import PRICE_TABLE, SCRIPTED_MODEL, SimulatedJudge
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.judge import JudgingRun
from trajectory_pipeline.report.page import build_report
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage

TRAJECTORIES = 100_000


def measure(bench: Bench) -> Result:
    """Measure point 12."""
    result = Result("12", f"The report, {TRAJECTORIES:,} trajectories")
    with bench.sinks() as sinks:
        bench.report("Judging the demonstration's runs …")
        judge_story(bench.server, sinks.database_url, sinks.folder)
        with psycopg.connect(sinks.database_url, autocommit=True) as connection:
            bench.report(f"Multiplying trajectories and verdicts to {TRAJECTORIES:,} …")
            multiply(connection, TRAJECTORIES)
            multiply_verdicts(connection, TRAJECTORIES)
        bench.settle()
        made = [in_child(f"{__name__}:make", database_url=sinks.database_url) for _ in range(bench.size.tries)]
    result.add("making it", [child.seconds for child in made], at_most=60, note=f"of {AGENTS:,} agents")
    result.add("the file", made[0].value["bytes"] / 1e6, "MB", at_most=3)
    result.add("peak memory", [child.peak_mb for child in made], "MB")
    result.add("judged", made[0].value["judged"], "runs")
    return result


def make(database_url: str) -> dict[str, int]:
    """Make the report; returns its size and how many runs in it are judged."""
    report = build_report(TrajectoryDatabase(database_url), Redactor(key=b"of this measurement"))
    (totals,) = report.tables["totals"]
    return {"bytes": len(report.html.encode()), "judged": totals["judged"]}


def judge_story(server: EmbeddedServer, database_url: str, folder: Path) -> None:
    """Capture the demonstration's runs and judge them by its simulated judge."""
    server.ensure_database("story")
    source_url = server.url("story")
    STORY.load(source_url)
    hours = list(STORY.partitions())
    storage = Storage.at(str(folder), database_url)
    with LettaSource(source_url).pooled() as source:
        for hour in hours:
            materialize_terminal_runs(hour, source, storage)
            materialize_trajectories(hour, storage)
    with SimulatedJudge.start() as judge:
        budget = Budget(prices=load_prices(PRICE_TABLE))
        judging = JudgingRun(storage, JudgeConfig(SCRIPTED_MODEL, judge.base_url, "not-needed", budget=budget))
        judging.judge_partitions(hours)
        for hour in hours:
            judging.publish(hour)
