"""A first look at trajectories, as a marimo notebook: `.venv/bin/marimo edit docs/notebooks/first_look.py`."""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import marimo as mo

    mo.md(
        """
        # A first look at trajectories

        Run `make demo` first. In another terminal: `export TRAJECTORY_DATA_FOLDER=data/demo`, then open this notebook.
        Each cell reads the Parquet files that the demonstration wrote.
        """
    )
    return (mo,)


@app.cell
def _(mo):
    import trajectory_pipeline as tp

    runs = tp.trajectories("2026-11-23", "2026-11-26").to_pandas()
    mo.md(f"**{len(runs)} runs** of {runs['agent_name'].nunique()} agents. What Letta says of how they ended:")
    return runs, tp


@app.cell
def _(runs):
    runs.groupby(["status", "stop_reason", "execution_status"], dropna=False).size().rename("runs").reset_index()
    return


@app.cell
def _(mo):
    mo.md(
        """
        ## What the runs achieved

        `completed` means that the run ended, not that the task was done. The verdicts say what was achieved.
        Here both stand side by side: rows are the heuristic outcome, columns the verdict.
        """
    )
    return


@app.cell
def _(runs, tp):
    verdicts = tp.verdicts("2026-11-23", "2026-11-26").to_pandas()
    both = runs[["run_id", "agent_name", "heuristic_outcome"]].merge(verdicts, on="run_id")
    both.pivot_table(index="heuristic_outcome", columns="outcome", values="run_id", aggfunc="count", fill_value=0)
    return both, verdicts


@app.cell
def _(mo):
    mo.md(
        """
        ## Failures that look like successes

        The heuristic took them for a success, and the judge found an unmet requirement.
        """
    )
    return


@app.cell
def _(both):
    hidden = both[(both["heuristic_outcome"] == "success") & (both["outcome"] == "failure")]
    hidden[["agent_name", "failure_owner", "failure_mode", "lesson", "run_id"]].sort_values("agent_name")
    return (hidden,)


@app.cell
def _(mo):
    mo.md(
        """
        ## Tools

        A frame can also be a DuckDB relation. It reads only the columns and rows that the query needs.
        """
    )
    return


@app.cell
def _(tp):
    calls = tp.tool_calls("2026-11-23", "2026-11-26").to_duckdb()
    calls.aggregate(
        "tool, count(*) AS calls, count(*) FILTER (WHERE return_status = 'error' AND NOT denied) AS failed"
    ).order("calls DESC").limit(10).to_arrow_table().to_pandas()
    return (calls,)


@app.cell
def _(mo):
    mo.md(
        """
        ## Read one run

        Every message is a row. Here is a run in which the agent says that it refunded a customer, and never did.
        """
    )
    return


@app.cell
def _(tp):
    messages = tp.messages(run_id="run-e7802658-9624-43b0-b11e-a47969ef2839").to_pandas()
    messages[["turn_index", "kind", "text", "tool_calls"]]
    return (messages,)


if __name__ == "__main__":
    app.run()
