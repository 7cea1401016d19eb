"""Assets ``exports/…``: datasets in the formats that ``TRAJECTORY_EXPORTS`` names, kept up to date by partition."""

import posixpath
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.assets.partition_runner import MaterializeResults, Metadata, materialize_partitions
from trajectory_pipeline.defs.metadata import export_metadata
from trajectory_pipeline.defs.resources import JudgeResource, StorageResource
from trajectory_pipeline.errors import PipelineError, SettingsError
from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.exports.splits import SplitShares
from trajectory_pipeline.partition_keys import LETTA, asset_path, partition_key
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.schema.versions import EXPORT_VERSION
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.urls import without_credentials

if TYPE_CHECKING:
    from trajectory_pipeline.pipeline.export_asset import ExportAsset
    from trajectory_pipeline.storage.storage import Storage

EXPORTS = "exports"
_MADE_FROM = (TRAJECTORIES.name, REFINED_OUTCOMES.name, TRAJECTORY_EMBEDDINGS.name)
"""Families, by which splits are drawn, come with embeddings."""


def export_formats(settings: Settings) -> list[ExportFormat]:
    """Return the formats that are assets.

    Raises:
        SettingsError: one is no format, or a package is missing.
    """
    unknown = [name for name in settings.export.formats if name not in set(ExportFormat)]
    if unknown:
        raise SettingsError(
            f"TRAJECTORY_EXPORTS names {', '.join(map(repr, unknown))}: name some of {', '.join(ExportFormat)}."
        )
    if settings.export.near_duplicates is not None and find_spec("datasketch") is None:
        raise SettingsError(
            "TRAJECTORY_EXPORT_NEAR_DUPLICATES needs a package: pip install 'trajectory-pipeline[near-duplicates]'."
        )
    return [kind for kind in ExportFormat if kind in settings.export.formats]


def hourly_formats(settings: Settings) -> list[ExportFormat]:
    """Return the formats whose assets have partitions: of runs, and not of pairs, which join runs of many hours.

    Raises:
        SettingsError: one is no format.
    """
    return [kind for kind in export_formats(settings) if not kind.form.pairs]


def export_key(kind: ExportFormat, source: str = LETTA) -> dg.AssetKey:
    """Return the key of a format's asset over the hours of a source; all sources' hours are in one dataset."""
    return dg.AssetKey([*asset_path(EXPORTS, source), kind.value])


def export_batch(backfill_batch: int) -> int:
    """Return the most partitions that one run exports, where a run of capture takes ``backfill_batch``.

    Another number than those of the other stages, because Dagster puts assets with one backfill policy into one run.
    """
    return 3 * backfill_batch


def export_asset_of(settings: Settings, kind: ExportFormat, redaction_key: bytes | None) -> "ExportAsset":
    """Return what a format's asset holds, by the settings."""
    from trajectory_pipeline.pipeline.export import ExportOptions
    from trajectory_pipeline.pipeline.export_asset import ExportAsset

    export = settings.export
    options = ExportOptions(
        kind,
        shares=SplitShares(*export.splits),
        redaction=export.redaction,
        redaction_key=redaction_key,
        with_reasoning=export.reasoning,
        near_duplicates=export.near_duplicates,
    )
    return ExportAsset(_target(settings), options, export.filters, settings.storage.file_access)


def _target(settings: Settings) -> str:
    return settings.export.uri or posixpath.join(settings.storage.parquet_location.rstrip("/"), EXPORTS)


def build_exports(
    settings: Settings, partitions: dg.PartitionsDefinition[str], source: str = LETTA
) -> list[dg.AssetsDefinition]:
    """Return an asset over the hours of a source for each format of single runs that is wanted."""
    return [_build_export(settings, partitions, kind, source) for kind in hourly_formats(settings)]


def build_pair_exports(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return an asset without partitions for each format of pairs that is wanted."""
    return [_build_pair_export(settings, kind) for kind in export_formats(settings) if kind.form.pairs]


def _about(kind: ExportFormat) -> str:
    return f"{kind.form.files} {kind.form.about[0].upper()}{kind.form.about[1:]}."


def _build_pair_export(settings: Settings, kind: ExportFormat) -> dg.AssetsDefinition:
    @dg.asset(
        key=export_key(kind),
        description=f"{_about(kind)} Of the runs of all sources and hours; made anew once a day.",
        metadata={"dagster/uri": posixpath.join(without_credentials(_target(settings)), kind.value)},
        group_name=EXPORTS,
        owners=settings.dagster.owners,
        tags={"stage": "export"},
        code_version=f"export {EXPORT_VERSION}",
        deps=[asset_key(one, source) for source in settings.source.names for one in _MADE_FROM],
        pool="export",
        check_specs=asset_checks.export_specs(export_key(kind)),
    )
    def export(storage: StorageResource, judge: JudgeResource) -> MaterializeResults:
        from trajectory_pipeline.pipeline import export_asset

        asset = _asset_of(settings, kind, judge)
        try:
            sinks = storage.sinks()
            exported = export_asset.export_pairs(sinks, asset)
            checks = _check(sinks, asset, {export_asset.PAIRS: export_asset.PAIRS})
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        metadata = export_metadata(exported)
        yield dg.MaterializeResult(
            metadata={"dagster/row_count": metadata.pop("dagster/partition_row_count"), **metadata},
            check_results=checks,
        )

    return export


def _build_export(
    settings: Settings, partitions: dg.PartitionsDefinition[str], kind: ExportFormat, source: str
) -> dg.AssetsDefinition:
    with warnings.catch_warnings():
        # Beta, and pinned by the range in pyproject.toml.
        warnings.filterwarnings("ignore", r".*`backfill_policy`", dg.BetaWarning)

        @dg.asset(
            key=export_key(kind, source),
            description=_about(kind),
            metadata={"dagster/uri": posixpath.join(without_credentials(_target(settings)), kind.value)},
            partitions_def=partitions,
            backfill_policy=dg.BackfillPolicy.multi_run(
                max_partitions_per_run=export_batch(settings.dagster.backfill_batch)
            ),
            group_name=EXPORTS,
            owners=settings.dagster.owners,
            tags={"stage": "export"},
            code_version=f"export {EXPORT_VERSION}",
            deps=[asset_key(one, source) for one in _MADE_FROM],
            pool="export",
            check_specs=asset_checks.export_specs(export_key(kind, source)),
        )
        def export(
            context: dg.AssetExecutionContext, storage: StorageResource, judge: JudgeResource
        ) -> MaterializeResults:
            from trajectory_pipeline.pipeline import export_asset
            from trajectory_pipeline.storage.parquet.store import hour_folder

            asset = _asset_of(settings, kind, judge)
            try:
                sinks = storage.sinks()
            except PipelineError as error:
                raise dg.Failure(str(error), allow_retries=False) from None

            def publish(hour: datetime) -> Metadata:
                return export_metadata(
                    export_asset.export_partition(hour, sinks, asset, dagster_run_id=context.run.run_id)
                )

            def check_results(hours: Sequence[datetime]) -> list[dg.AssetCheckResult]:
                return _check(sinks, asset, {partition_key(hour): hour_folder(hour) for hour in hours})

            yield from materialize_partitions(context, publish, check_results)

    return export


def _asset_of(settings: Settings, kind: ExportFormat, judge: JudgeResource) -> "ExportAsset":
    return export_asset_of(settings, kind, judge.redaction_key.encode() if judge.redaction_key else None)


def _check(sinks: "Storage", asset: "ExportAsset", folders: Mapping[str, str]) -> list[dg.AssetCheckResult]:
    """Publish the card, and check what was materialized: folders of the dataset, by the names that they are told by."""
    from trajectory_pipeline.pipeline import export_asset
    from trajectory_pipeline.storage.postgres.export_registry import registered_exports

    export_asset.publish_card(sinks, asset)
    differing = {
        name: "; ".join(found)
        for name, folder in folders.items()
        if (found := export_asset.find_differences(asset, folder))
    }
    held = [one for one in registered_exports(sinks.postgres) if one.export_id == asset.export.export_id]
    return [
        asset_checks.export_files(differing, len(folders)),
        asset_checks.export_holds_no_erased(sum(sum(one.gone.values()) for one in held)),
    ]
