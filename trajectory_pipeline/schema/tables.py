"""Every dataset and table."""

from trajectory_pipeline.schema.bookkeeping import (
    INVALIDATIONS,
    PARTITIONS,
    QUARANTINE,
    RATE_LIMITS,
    RUN_LOCATIONS,
    RUN_VERSIONS,
    SOURCES,
    SPEND_TOTALS,
    VERDICT_LOCKS,
)
from trajectory_pipeline.schema.calibrations import CALIBRATIONS
from trajectory_pipeline.schema.exports import EXPORT_BANDS, EXPORT_DUPLICATES, EXPORT_GROUPS, EXPORT_RUNS, EXPORTS
from trajectory_pipeline.schema.failure_modes import FAILURE_MODE_RUNS, FAILURE_MODES
from trajectory_pipeline.schema.labels import LABEL_SAMPLES, LABELS
from trajectory_pipeline.schema.quality import JUDGE_CONFUSIONS, JUDGE_QUALITY
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.search import EMBEDDING_MODELS, SEARCH_TEXTS, TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.service import SERVICE_TOKENS
from trajectory_pipeline.schema.task_families import SIMILAR_RUNS, TASK_FAMILIES, TASK_FAMILY_BARS, TASK_FAMILY_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import (
    JUDGE_BATCHES,
    POLICIES,
    REDACTION_KEYS,
    REFINED_OUTCOMES,
    VERDICT_ATTEMPTS,
    VERDICTS,
)

TABLES = (
    TERMINAL_RUNS,
    TRAJECTORIES,
    REFINED_OUTCOMES,
    VERDICTS,
    VERDICT_ATTEMPTS,
    JUDGE_BATCHES,
    SPEND_TOTALS,
    VERDICT_LOCKS,
    RATE_LIMITS,
    POLICIES,
    REDACTION_KEYS,
    LABELS,
    LABEL_SAMPLES,
    JUDGE_QUALITY,
    JUDGE_CONFUSIONS,
    CALIBRATIONS,
    FAILURE_MODES,
    FAILURE_MODE_RUNS,
    SEARCH_TEXTS,
    EMBEDDING_MODELS,
    TRAJECTORY_EMBEDDINGS,
    TASK_FAMILIES,
    TASK_FAMILY_RUNS,
    SIMILAR_RUNS,
    TASK_FAMILY_BARS,
    PARTITIONS,
    QUARANTINE,
    RUN_LOCATIONS,
    RUN_VERSIONS,
    SOURCES,
    INVALIDATIONS,
    SERVICE_TOKENS,
    EXPORTS,
    EXPORT_RUNS,
    EXPORT_BANDS,
    EXPORT_DUPLICATES,
    EXPORT_GROUPS,
)
"""In the order of the data dictionary."""
