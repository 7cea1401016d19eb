"""The commands ``demo`` and ``load-sample``: the pipeline on one machine, with a sample and a scripted judge."""

import os
import sys
import time
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import dagster as dg

from trajectory_pipeline.cli.clean import DEMO_FOLDER, remove_data
from trajectory_pipeline.cli.connections import Connections, databases_of, open_connections
from trajectory_pipeline.cli.console import err, out, progress_bar, step
from trajectory_pipeline.cli.dagster_processes import (
    assets_page,
    dagster_home,
    port_option,
    prepare_storage,
    project_folder,
    run_until_interrupted,
    start_code_servers,
    start_daemon,
    start_webserver,
    stopping,
    wait_until_ready,
)
from trajectory_pipeline.cli.listening import HOST, listen_nearby, port_of
from trajectory_pipeline.cli.run_materialization import materialize, run_job
from trajectory_pipeline.cli.serve import SERVICE_PORT, commands_to_try, start_service
from trajectory_pipeline.cli.shared_workspace import shared_workspace
from trajectory_pipeline.cli.signals import interrupt_on_signals
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.databases import resolve_databases
from trajectory_pipeline.defs.asset_keys import ASSETS
from trajectory_pipeline.defs.assets.trajectory_report import REPORT
from trajectory_pipeline.defs.history_checks import JOB_NAME as HISTORY_CHECKS_JOB
from trajectory_pipeline.defs.jobs.completeness import JOB_NAME as COMPLETENESS_JOB
from trajectory_pipeline.defs.jobs.report import JOB_NAME as REPORT_JOB
from trajectory_pipeline.defs.sensors.empty_hours import find_empty_hours, report_empty_hours, unknown_hours
from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_SOURCE
from trajectory_pipeline.demo.letta_sample.labels import sample_labels
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SCRIPTED_MODEL, SimulatedJudge
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import LETTA, source_of_key
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.pipeline.judge_panel import judge_panel
from trajectory_pipeline.quality import summary
from trajectory_pipeline.schema.enums import Criterion
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.settings import LOCAL_EMBEDDING_MODEL, load_settings, setting_fields
from trajectory_pipeline.storage.postgres.embeddings import search_counts
from trajectory_pipeline.storage.postgres.judge_quality import read_quality
from trajectory_pipeline.storage.postgres.labels import write_labels
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.service_tokens import has_tokens
from trajectory_pipeline.storage.postgres.summaries import (
    has_other_trajectories,
    summarize_runs,
    trajectories_by_partition,
)
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres

_DATA_FOLDER = "TRAJECTORY_DATA_FOLDER"


@click.command("demo")
@click.option("--once", is_flag=True, help="Exit when everything is done; exit code 0 only if the result is complete.")
@port_option
@click.option("--reset", is_flag=True, help="Delete what an earlier demonstration left, then start.")
def command(*, once: bool, port: int, reset: bool) -> None:
    """Run the whole pipeline on this machine: rows of a real Letta server, embedded Postgres, scripted judge.

    Writes only to the folder data/demo, or TRAJECTORY_DATA_FOLDER. Other settings, and a file .env, are not used: no
    database, storage or judge of yours. A later one goes on with what is there; runs that were deleted stay deleted
    until --reset. Exit code 0: every terminal run of the sample that is still there is in both sinks, with a verdict or
    a stated reason for none.
    """
    folder = _forget_other_settings()
    if reset:
        if folder.resolve() != DEMO_FOLDER.resolve():
            raise click.UsageError(f"--reset deletes {DEMO_FOLDER} alone: unset TRAJECTORY_DATA_FOLDER.")
        remove_data(folder)
    try:
        complete = _run_demo(stay=not once, port=port)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if complete else 1)


@click.command("load-sample")
@click.option("--url", help="Postgres database to load into. Default: LETTA_PG_URI, else the embedded server.")
@click.option("--create", is_flag=True, help="Create the database if it does not exist.")
def load_sample_command(url: str | None, *, create: bool) -> None:
    """Load the sample, rows of a real Letta 0.16.8 server, into an empty database.

    A database that already holds the sample, or what is left of it after deletions, is left unchanged; one that holds
    other runs is refused.
    """
    with step("Sample") as report:
        if url is None:
            url = databases_of(load_settings(), report).letta_url
        counts = STORY.load(url, create_database=create, report=report)
    state = "was already loaded" if counts.already_loaded else "is loaded"
    if counts.deleted:
        state += f", and {pluralize(len(counts.deleted), 'run')} deleted since"
    out.print(
        f"The sample {state}: {counts.runs} runs ({counts.terminal_runs} terminal) in {counts.partitions} partitions,"
        f" {counts.steps} steps, {counts.messages} messages."
    )


def _run_demo(*, stay: bool, port: int) -> bool:
    started = time.monotonic()
    with interrupt_on_signals(), ExitStack() as stack:
        # Held from now on: what is printed at the end is taken minutes later.
        listening = stack.enter_context(listen_nearby(port))
        service_listening = stack.enter_context(listen_nearby(SERVICE_PORT))
        port, service_port = port_of(listening), port_of(service_listening)
        first, _ = STORY.window()
        # From the sample's first day on: the UI's partition bar is readable for a few days, not for two years.
        os.environ["TRAJECTORY_START"] = first.replace(hour=0).isoformat()
        os.environ["ENABLE_TRAJECTORY_CAPTURE"] = "true"
        os.environ["TRAJECTORY_EMBEDDING_MODEL"] = LOCAL_EMBEDDING_MODEL
        os.environ["TRAJECTORY_SOURCES"] = LETTA_CODE_SOURCE
        with step("Databases") as report:
            databases = resolve_databases(load_settings(), report)
            stack.callback(databases.release)
            os.environ.update(databases.environment())
            migrate(databases.database_url)
            opened = open_connections()
            _refuse_other_trajectories(opened)
            sample = STORY.load(databases.letta_url, create_database=True, report=report)
        terminal = STORY.terminal_run_ids() - sample.deleted
        _start_judge(stack)
        opened = open_connections()
        data_folder = opened.settings.storage.data_folder
        with step("Dagster's storage"):
            prepare_storage(dagster_home(data_folder), os.environ["DAGSTER_PG_URL"])
        log = data_folder.absolute() / "dagster.log"
        workspace = stack.enter_context(shared_workspace(project_folder() / "workspace.yaml"))
        webserver = start_webserver(os.environ, workspace.file, listening, log)
        processes = [*start_code_servers(os.environ, workspace, log), webserver]
        stack.enter_context(stopping(processes))
        hours = list(STORY.partitions())
        with progress_bar("Materializing", total=len(hours) * len(ASSETS)) as progress:
            failures = materialize(hours, ASSETS, opened.storage.postgres, progress)
        failures |= _materialize_others(opened)
        _judge_again(opened, terminal)
        with step("Hours without runs"):
            _report_empty_hours(opened)
        # The daemon starts only now: its sensors would request the same partitions.
        with step(f"Dagster UI at http://{HOST}:{port}, with schedule and sensors running") as report:
            processes.append(start_daemon(os.environ, workspace.file, log))
            wait_until_ready(webserver, port, log, report)
        service = f"http://{HOST}:{service_port}"
        with step(f"Service at {service}"):
            environment = {**os.environ, "TRAJECTORY_DAGSTER_UI_URL": f"http://{HOST}:{port}"}
            processes.append(start_service(environment, service_listening, data_folder.absolute() / "service.log"))
        out.print(f"{len(hours)} partitions in {time.monotonic() - started:.0f} s")
        complete = _print_result(opened, terminal)
        page = _publish_report()
        _print_quality(opened)
        for run_id, reason in failures.items():
            err.print(f"Dagster run {run_id} failed: {reason}", style="red")
        out.print(f"\n  Dagster UI   {assets_page(port)}")
        out.print(f"  Report       {page}")
        out.print(f"  Service      {service}")
        if stay:
            _print_what_to_ask(service, has_tokens(opened.storage.postgres))
        out.print("\nLook first at the report: which runs failed though Letta says that they are completed.")
        if stay:
            out.print("\nCtrl-C stops everything; `make demo` starts it again with the same data.")
            if run_until_interrupted(processes, log) is not None:
                raise PipelineError(f"A Dagster process ended unexpectedly; see {log}.")
    return complete and not failures


def _forget_other_settings() -> Path:
    """Forget all settings but the data folder, and return it: what they name is not read, written or paid for."""
    names = {*setting_fields(), "DAGSTER_HOME"} - {_DATA_FOLDER}
    if forgotten := sorted(name for name in names if os.environ.pop(name, None)):
        err.print(f"Not used by the demonstration: {', '.join(forgotten)}.")
    if not os.environ.get(_DATA_FOLDER):
        os.environ[_DATA_FOLDER] = str(DEMO_FOLDER)
    return Path(os.environ[_DATA_FOLDER])


def _refuse_other_trajectories(opened: Connections) -> None:
    """Refuse a folder that holds trajectories of other runs than the samples'.

    Raises:
        PipelineError: it does; nothing was loaded.
    """
    ids = set(STORY.terminal_run_ids())
    for source in opened.others():
        with source.snapshot() as snapshot:
            hours = snapshot.runs_by_hour()
            ids |= {run_id for hour in hours for run_id in snapshot.run_ids(hour, hour + timedelta(hours=1))}
    if has_other_trajectories(opened.storage.postgres, sorted(ids)):
        raise PipelineError(
            f"{opened.settings.storage.data_folder} holds trajectories that are not the demonstration's: unset"
            " TRAJECTORY_DATA_FOLDER."
        )


def _materialize_others(opened: Connections) -> dict[str, str]:
    """Materialize the hours of the other source, Letta Code, that have runs."""
    failures: dict[str, str] = {}
    for source in opened.others():
        with source.snapshot() as snapshot:
            hours = sorted(hour for hour in snapshot.runs_by_hour() if hour >= opened.settings.capture.start)
        if hours:
            with progress_bar(f"Materializing {source.name}", total=len(hours) * len(ASSETS)) as progress:
                failures |= materialize(hours, ASSETS, opened.storage.postgres, progress)
    return failures


def _start_judge(stack: ExitStack) -> None:
    with step("Scripted judge (it gives labels that a person wrote, and is no model; prices are made up)"):
        judge = stack.enter_context(SimulatedJudge.start())
    os.environ["OPENAI_BASE_URL"] = judge.base_url
    os.environ["TRAJECTORY_JUDGE_MODEL"] = SCRIPTED_MODEL
    os.environ["TRAJECTORY_PRICES"] = str(PRICE_TABLE)


def _judge_again(opened: Connections, terminal: Collection[str]) -> None:
    """Load the labels, and judge the same runs by rules too: the report job measures both judges."""
    database = opened.storage.postgres
    with step("Labels that two people wrote by hand"):
        write_labels(database, sample_labels())
    settings = opened.settings
    with step("A second judge on the same runs, to compare (simple rules, and no model)") as report:
        rules = settings.judge.model_copy(update={"model": JUDGE_MODEL})
        judge = judge_config(rules, settings.privacy, settings.budget)
        judge_panel(sorted(terminal), 1, opened.storage, judge, progress=report)


def _print_quality(opened: Connections) -> None:
    """Print how far each judge, and two people, agree on outcomes."""
    rows = [row for row in read_quality(opened.storage.postgres) if row["criterion"] == Criterion.OUTCOME]
    names = {row["policy_id"]: row["model"] or "people" for row in rows}
    print_table(
        ("policy", "who", "runs", "agreement on outcomes", "kappa"),
        [
            (policy, who, runs, agreement, kappa)
            for policy, who, _, runs, agreement, kappa, *_ in summary.summary_rows(rows, names)
        ],
        whole=("policy",),
    )
    out.print(f"{SCRIPTED_MODEL} repeats one person's labels: its agreement says nothing of a model.")


def _print_what_to_ask(service: str, with_tokens: bool) -> None:
    out.print("\nAsk the service for a run where a refund was refused, and why:")
    for how, command in commands_to_try(service).items():
        out.print(f"  {how:8} {command}")
    if with_tokens:
        out.print("There are tokens, so each of them needs one: docs/service.md says how to give it.")


def _report_empty_hours(opened: Connections) -> None:
    """Report every closed hour without runs to Dagster, so that only the open hour is shown as missing."""
    with dg.DagsterInstance.get() as instance:
        for name in opened.settings.source.names:
            unknown = unknown_hours(instance, opened.settings, datetime.now(UTC), name)
            report_empty_hours(instance, find_empty_hours(opened.source_named(name), opened.storage, unknown))


def _count_by_source(opened: Connections) -> Counter[str]:
    counts: Counter[str] = Counter()
    for key, number in trajectories_by_partition(opened.storage.postgres).items():
        counts[source_of_key(key)] += number
    return counts


def _publish_report() -> str:
    """Measure the judges, make the report and the checks over all partitions, as their schedules do.

    Returns where the report is.
    """
    with step("How far the judges agree with people, report, and checks over all partitions"):
        (report,) = run_job(REPORT_JOB).asset_materializations_for_node(REPORT)
        run_job(HISTORY_CHECKS_JOB)
        run_job(COMPLETENESS_JOB)
        return str(report.metadata["dagster/uri"].value)


def _print_result(opened: Connections, ids: frozenset[str]) -> bool:
    """Print what the sinks hold; returns whether both hold these runs, each with a verdict or a reason for none."""
    in_parquet: set[str] = set()
    for hour in STORY.partitions():
        for batch in opened.storage.parquet.read(TRAJECTORIES, hour, ["run_id"]):
            in_parquet.update(ids.intersection(batch.column("run_id").to_pylist()))
    summary = summarize_runs(opened.storage.postgres, sorted(ids))
    counts = {
        "terminal runs of the sample": len(ids),
        "trajectories in Postgres": summary.trajectories,
        "trajectories in Parquet": len(in_parquet),
        **{f"trajectories of {name}": number for name, number in _count_by_source(opened).items() if name != LETTA},
        "quarantined": summary.quarantined,
        **{f"verdicts: {status}": number for status, number in summary.verdicts.items()},
        **search_counts(opened.storage.postgres),
    }
    prices = " (simulated prices)" if summary.simulated else ""
    cost = (f"cost of judging, USD{prices}", f"{summary.cost_usd:.4f}")
    print_table(("", "count"), [*((name, str(count)) for name, count in counts.items()), cost], numbers=("count",))
    others = [name for name in opened.settings.source.names if name != LETTA]
    if others:
        out.print(f"  In the UI, {' and '.join(others)} has a group of assets of its own.")
    out.print(f"\n  Postgres     {describe_postgres(opened.databases.database_url)}, schema trajectory")
    out.print(f"  Parquet      {opened.storage.parquet.shown_uri}")
    out.print(f"  Judge        {', '.join(summary.judges) or 'none'}")
    return len(ids) == summary.trajectories == len(in_parquet) and "none" not in summary.verdicts
