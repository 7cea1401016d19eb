"""Tokens sent per trajectory of the sample, compared with sending its whole JSON document once.

.venv/bin/python -m benchmarks.prompt_tokens
"""

import statistics

from trajectory_pipeline.budget.token_estimate import estimated_tokens
from trajectory_pipeline.judge.judge_trajectory import build_judge_request
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import overhead_tokens
from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline_tests.judge.documents import sample_documents


def main() -> None:
    """Print both, by the same estimate, and their ratio: for the transcript alone, and with rules and schema."""
    policy, frame = RefinementPolicy("any"), overhead_tokens()
    whole, transcripts, prompts = [], [], []
    for document in sample_documents():
        case = build_judge_request([document], policy)
        whole.append(estimated_tokens(write_json(document)))
        transcripts.append(sum(estimated_tokens(window.text) for window in case.rendered.windows))
        prompts.append(case.prompt_tokens)
    for name, tokens in (("whole JSON once", whole), ("transcript", transcripts), ("whole prompt", prompts)):
        print(f"{name:16} median {statistics.median(tokens):8.0f}  mean {statistics.mean(tokens):8.0f} tokens")
    print(f"rules and schema, the same in every prompt (cached by providers): {frame} tokens")
    print(f"transcript / whole JSON:   {sum(transcripts) / sum(whole):.3f}")
    print(f"whole prompt / whole JSON: {sum(prompts) / sum(whole):.3f}")


if __name__ == "__main__":
    main()
