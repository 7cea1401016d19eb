"""A simulated judge: a local server that speaks the OpenAI API and answers by simple visible rules.

It makes demonstrations, load tests and tests of failures possible without a provider, a key or money. Every response
carries the header ``x-simulated``, every text says "simulated", the prices are made up (``PRICE_TABLE``), and it serves
this machine only.

>>> with SimulatedJudge.start() as judge:  # doctest: +SKIP
...     os.environ["OPENAI_BASE_URL"] = judge.base_url
"""

from trajectory_pipeline.demo.simulated_judge.faults import (
    FAULTS,
    Fault,
    FaultStage,
    fault_table_markdown,
    fault_table_text,
)
from trajectory_pipeline.demo.simulated_judge.prices import (
    EMBEDDING_MODEL,
    JUDGE_MODEL,
    OBEDIENT_MODEL,
    PRICE_TABLE,
    SCRIPTED_MODEL,
    SIMULATED_PRICES,
    SimulatedPrice,
)
from trajectory_pipeline.demo.simulated_judge.process import SimulatedJudge

__all__ = [
    "EMBEDDING_MODEL",
    "FAULTS",
    "JUDGE_MODEL",
    "OBEDIENT_MODEL",
    "PRICE_TABLE",
    "SCRIPTED_MODEL",
    "SIMULATED_PRICES",
    "Fault",
    "FaultStage",
    "SimulatedJudge",
    "SimulatedPrice",
    "fault_table_markdown",
    "fault_table_text",
]
