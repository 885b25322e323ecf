"""`headwater export`: a run becomes a release, `releases/<name>/<version>/`.

The graph is built, compared with the network on real rows, and given golden rows, all in a
temporary folder beside the versions; only a complete and proven release is renamed to its number.
`docs/release.md` describes the files.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch

from headwater.feature_store.errors import JobError
from headwater.feature_store.files import file_sha256
from headwater.feature_store.normalise import named
from headwater.feature_store.onnx_compiler import least_opset
from headwater.feature_store.reader import Reader
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.network import Network
from headwater.pipelines.arguments import checked, path_of
from headwater.pipelines.console import note
from headwater.pipelines.data.expressions import reads
from headwater.pipelines.job import Export, Job
from headwater.pipelines.loader import Loader
from headwater.pipelines.output import workspace, writing
from headwater.pipelines.prepared import load_prepared
from headwater.pipelines.release.builder import OUTPUT
from headwater.pipelines.release.golden import golden_rows
from headwater.pipelines.release.graph import (
    release_graph,
    release_layers,
    slot_parts,
    slot_tables,
)
from headwater.pipelines.release.int8 import measured_int8
from headwater.pipelines.release.parity import check, encoded_batch, torch_scores
from headwater.pipelines.release.writer import publish
from headwater.pipelines.rules.release import context_problems, opset_problems
from headwater.pipelines.runs.run import Run, as_run
from headwater.pipelines.runs.trained import load_trained
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.graph import open_session
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import (
    FORMAT_VERSION,
    MODEL_NAME,
    SCORE,
    Feature,
    Golden,
    Graph,
    Input,
    Manifest,
    Output,
)


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

    Raises ParityError where the graph differs from the network by more than `export.tolerance`, or int8
    costs more AUC than `export.max_auc_cost`; OutputError where the release cannot be written. Then
    nothing is left of it.
    """
    run = as_run(run, "export: run")
    releases = path_of(releases, "export: releases")
    if settings is not None:
        checked(settings, Export, "export: settings", "an Export section, as job.export")
    metrics = run.metrics
    prepared = load_prepared(Path(metrics.prepared))
    placement = load_trained(run, prepared.schema, torch.device("cpu"))
    job = run.job if settings is None else run.job.model_copy(update={"export": settings})
    valid = None
    if job.export.precision == "int8":
        reader = Reader(prepared.dataset("valid"), job.train.batch_size, seed=0, shuffle=False)
        valid = Loader(reader, torch.device("cpu")).epoch(0)
    return export_network(
        placement.network,
        prepared.schema,
        pl.read_parquet(prepared.sample),
        job,
        releases,
        valid=valid,
        metrics={split: found for split in ("valid", "test") if (found := metrics.of(split))},
        time_range_ms=prepared.statistics.time_range_ms,
    )


def export_network(
    network: Network,
    schema: Schema,
    sample: pl.DataFrame,
    job: Job,
    releases: Path,
    *,
    valid: Iterable[Batch] | None = None,
    metrics: Mapping[str, Mapping[str, float | None]] | None = None,
    time_range_ms: tuple[int, int] | None = None,
) -> Path:
    """Write a trained network as the next version of its release, and return its folder.

    Parameters
    ----------
    network
        On the CPU, ready for a forward pass.
    sample
        Real normalised raw rows, and the label.
    valid
        Labelled rows by which the cost of int8 is measured; the sample when absent.
    metrics
        Metrics by split, for the manifest.
    time_range_ms
        First and last event time of the training data, UTC milliseconds.
    """
    settings = job.export
    opset = settings.opset or least_opset(
        step for column in schema.columns for step in column.steps
    )
    problems = context_problems(settings.context, [column.name for column in schema.raw])
    problems += opset_problems(settings.opset, {each.name: each.steps for each in schema.columns})
    if problems:
        raise JobError("\n".join(problems))
    golden, made = golden_rows(schema, sample, settings.golden_rows)
    rows = pl.concat([sample.select(map(named, golden.columns)), made])
    network.eval()
    expected = torch_scores(network, schema, rows, job.data.negative_rate)
    slots = slot_tables(network.embeddings)
    layers = release_layers(schema, slots, network.model, context=settings.context, opset=opset)
    labels = sample[job.features.label].to_numpy().astype(np.uint8)
    cost: dict[str, float] = {}
    tolerance = settings.tolerance
    if settings.precision == "int8":
        rows_of_sample = encoded_batch(schema, sample, labels)
        layers, found = measured_int8(
            network,
            layers,
            slot_parts(schema, slots, settings.context),
            rows_of_sample,
            [rows_of_sample] if valid is None else valid,
            max_auc_cost=settings.max_auc_cost,
        )
        note(found.text())
        cost, tolerance = found.values(), settings.int8_tolerance
    graph = release_graph(
        schema,
        slots,
        layers,
        context=settings.context,
        negative_rate=job.data.negative_rate,
        opset=opset,
    )
    manifest = _describe(job, schema, metrics or {}, time_range_ms)
    folder = releases / manifest.name
    with workspace(folder) as part:
        with writing(folder):
            files = graph.write(part / MODEL_NAME)
        scorer = Scorer(open_session(part / MODEL_NAME), manifest)
        parity = check(
            scorer,
            expected,
            schema,
            rows,
            labels,
            tolerance=tolerance,
            setting="tolerance" if settings.precision == "float32" else "int8_tolerance",
        )
        note(parity.text())
        golden = pl.concat([golden, made])
        scores = scorer.score(frame_to_arrays(golden, scorer.graph.inputs))
        manifest = msgspec.structs.replace(
            manifest,
            parity=parity.values() | cost,
            files={path.name: file_sha256(path) for path in files},
            graphs={
                SCORE: msgspec.structs.replace(
                    scorer.graph,
                    golden=Golden(
                        rows=golden.to_dict(as_series=False),
                        outputs={OUTPUT: scores.tolist()},
                        tolerance=tolerance,
                    ),
                )
            },
        )
        return publish(part, folder, manifest)


def derived(derive: Mapping[str, str], inputs: Iterable[str]) -> dict[str, str]:
    """Return the expressions of inputs that are derived, and of what they are derived from, in order."""
    needed = set(inputs)
    chosen: dict[str, str] = {}
    for name, text in reversed(list(derive.items())):
        if name in needed:
            chosen[name] = text
            needed |= reads(text, derive, "").keys()
    return dict(reversed(list(chosen.items())))


def _describe(
    job: Job,
    schema: Schema,
    metrics: Mapping[str, Mapping[str, float | None]],
    time_range_ms: tuple[int, int] | None,
) -> Manifest:
    """Return the manifest but for what only the written graph can tell."""
    inputs = tuple(
        Input(
            name=column.name,
            dtype=column.dtype,
            is_list=column.is_list,
            role="context" if column.name in job.export.context else "candidate",
            separators=tuple(
                dict.fromkeys(
                    each.separator
                    for each in schema.columns
                    if each.separator is not None and each.inputs == (column.name,)
                )
            ),
        )
        for column in schema.raw
    )
    features = tuple(
        Feature(
            name=column.name,
            encoder=column.encoder,
            inputs=column.inputs,
            cardinality=column.cardinality,
            length=column.length,
        )
        for column in schema.columns
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        name=job.export.name or job.name,
        version=0,
        headwater_version=importlib.metadata.version("headwater"),
        created_ts_ms=time.time_ns() // 1_000_000,
        model_type=job.model.type,
        precision=job.export.precision,
        derived=derived(job.data.derive, [column.name for column in schema.raw]),
        csv=job.data.csv.model_dump(mode="json", exclude_defaults=True),
        kind=Scorer.kind,
        graphs={
            SCORE: Graph(
                inputs=inputs,
                outputs=(Output(name=OUTPUT),),
                golden=Golden(rows={}, outputs={}, tolerance=job.export.tolerance),
            )
        },
        features=features,
        schema_hash=schema.hash,
        calibration={"negative_rate": job.data.negative_rate},
        metrics={
            split: {name: v for name, v in values.items() if v is not None and math.isfinite(v)}
            for split, values in metrics.items()
        },
        parity={},
        time_range_ms=time_range_ms,
        files={},
    )
