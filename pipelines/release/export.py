"""`headwater export`: a run becomes a release, `releases/<name>/<version>/`.

The model's family writes and proves the files in a temporary folder beside the versions; only a complete
release is renamed to its number. `docs/release.md` describes the files.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl
import torch
from msgspec.structs import replace

from headwater.feature_store.files import file_sha256
from headwater.pipelines.arguments import checked, path_of
from headwater.pipelines.data.expressions import reads
from headwater.pipelines.family import Reading, Trained, family_of
from headwater.pipelines.job import Export
from headwater.pipelines.output import workspace
from headwater.pipelines.prepared import load_prepared
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.release.writer import publish
from headwater.pipelines.runs.records import Values
from headwater.pipelines.runs.run import Run, as_run
from headwater.pipelines.runs.trained import load_trained
from headwater.serving.manifest import FORMAT_VERSION, Feature, Manifest


def export(
    run: Run | Path | str,
    releases: Path | str = Path("releases"),
    *,
    settings: Export | None = None,
) -> Path:
    """Write the best checkpoint of a complete run as the next version, and return its folder.

    Parameters
    ----------
    run
        Run, or its folder.
    releases
        Folder of all releases.
    settings
        The `[export]` section to go by; that of the run's own job when absent.

    Raises ParityError where the graph differs from the network by more than `export.tolerance`, or int8 or
    float16 cost more AUC than `export.max_auc_cost`; OutputError where the release cannot be written. Then
    nothing is left of it.
    """
    run = as_run(run, "export: run")
    releases = path_of(releases, "export: releases")
    if settings is not None:
        checked(settings, Export, "export: settings", "an Export section, as job.export")
    metrics = run.metrics
    prepared = load_prepared(Path(metrics.prepared))
    placement = load_trained(run, prepared, torch.device("cpu"))
    job = run.job if settings is None else run.job.model_copy(update={"export": settings})
    reading = Reading(job.train.batch_size)
    family = family_of(job)
    trained = Trained(
        placement.network,
        prepared.schema,
        job,
        pl.read_parquet(prepared.sample),
        valid=lambda: family.examples(job, prepared, "valid", reading, Ranks(), placement.device),
        items=prepared.items,
    )
    return write_release(
        trained,
        releases,
        metrics={split: found for split in ("valid", "test") if (found := metrics.of(split))},
        time_range_ms=prepared.statistics.time_range_ms,
    )


def write_release(
    trained: Trained,
    releases: Path,
    *,
    metrics: Mapping[str, Values] | None = None,
    time_range_ms: tuple[int, int] | None = None,
) -> Path:
    """Write a trained network as the next version of its release, and return its folder.

    Parameters
    ----------
    metrics
        Metrics by split, for the manifest.
    time_range_ms
        First and last event time of the training data, UTC milliseconds.
    """
    job, schema = trained.job, trained.schema
    name = job.export.name or job.name
    family = family_of(job)
    trained.network.eval()
    with workspace(releases / name) as part:
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            version=0,
            headwater_version=importlib.metadata.version("headwater"),
            created_ts_ms=time.time_ns() // 1_000_000,
            model_type=job.model.type,
            precision=job.export.precision,
            tables=job.export.tables,
            derived=derived(job.data.derive, [column.name for column in schema.raw]),
            csv=job.data.csv.model_dump(mode="json", exclude_defaults=True),
            kind="",
            graphs={},
            features=tuple(
                Feature(
                    name=column.name,
                    encoder=column.encoder,
                    inputs=column.inputs,
                    cardinality=column.cardinality,
                    length=column.length,
                )
                for column in schema.columns
            ),
            schema_hash=schema.hash,
            calibration={"negative_rate": job.data.negative_rate},
            metrics={
                split: {name: v for name, v in values.items() if v is not None and math.isfinite(v)}
                for split, values in (metrics or {}).items()
            },
            parity={},
            time_range_ms=time_range_ms,
            files={},
        )
        manifest = family.release(trained, manifest, part)
        files = {path.name: file_sha256(path) for path in sorted(part.iterdir())}
        return publish(part, releases / name, replace(manifest, files=files))


def derived(derive: Mapping[str, str], inputs: Iterable[str]) -> dict[str, str]:
    """Return the expressions of inputs that are derived, and of what they are derived from, in order."""
    needed = set(inputs)
    chosen: dict[str, str] = {}
    for name, text in reversed(list(derive.items())):
        if name in needed:
            chosen[name] = text
            needed |= reads(text, derive, "").keys()
    return dict(reversed(list(chosen.items())))
