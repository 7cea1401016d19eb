"""A simulated judge: a local server that speaks the OpenAI API and answers by simple visible rules.

Belongs here: what makes a demonstration, a load test or a test of failures possible without a provider, a key or
money. Does not belong here: asking a judge and believing it (``refinement``), which meets this server over HTTP as it
would meet any other; so nothing here knows the pipeline's own response schema.

Everything it writes says "simulated", its prices are listed and simulated, and it serves this machine only.

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
    CHAT_MODELS,
    EMBEDDING_MODEL,
    JUDGE_MODEL,
    OBEDIENT_MODEL,
    SIMULATED_PRICES,
    SimulatedPrice,
    simulated_price,
)
from trajectory_pipeline.demo.simulated_judge.process import SimulatedJudge

__all__ = [
    "CHAT_MODELS",
    "EMBEDDING_MODEL",
    "FAULTS",
    "JUDGE_MODEL",
    "OBEDIENT_MODEL",
    "SIMULATED_PRICES",
    "Fault",
    "FaultStage",
    "SimulatedJudge",
    "SimulatedPrice",
    "fault_table_markdown",
    "fault_table_text",
    "simulated_price",
]
