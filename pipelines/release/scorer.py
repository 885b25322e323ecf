"""The release of a model that scores rows: one graph from raw features to a score, compared with torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from msgspec.structs import replace
from onnx import ModelProto

from headwater.feature_store.errors import JobError
from headwater.feature_store.normalise import named
from headwater.feature_store.onnx_compiler import least_opset
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.pipelines.console import note
from headwater.pipelines.family import Trained
from headwater.pipelines.job import Job
from headwater.pipelines.output import writing
from headwater.pipelines.release.builder import OUTPUT
from headwater.pipelines.release.cost import ReleaseSize, is_reduced, measured_cost
from headwater.pipelines.release.golden import golden_rows
from headwater.pipelines.release.graph import (
    SlotTables,
    encoded_graph,
    release_graph,
    release_layers,
    slot_parts,
    slot_tables,
)
from headwater.pipelines.release.int8 import int8_layers
from headwater.pipelines.release.parity import (
    check,
    encoded_batch,
    own_tolerance,
    torch_scores,
)
from headwater.pipelines.rules.release import context_problems, opset_problems, table_problems
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.graph import open_session
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import MODEL_NAME, SCORE, Golden, Graph, Input, Manifest, Output


def write_scorer(trained: Trained, manifest: Manifest, folder: Path) -> Manifest:
    """Write the graph of a click model into `folder`, prove it, and describe it in the manifest.

    Raises JobError for a wrong `[export]` setting, ParityError where the graph differs from the network by
    more than `export.tolerance`, or int8 or float16 cost more AUC than `export.max_auc_cost`.
    """
    network, schema, job, sample = trained.network, trained.schema, trained.job, trained.sample
    settings = job.export
    opset = _opset(job, schema)
    problems = context_problems(settings.context, [column.name for column in schema.raw])
    problems += opset_problems(settings.opset, {each.name: each.steps for each in schema.columns})
    slots = slot_tables(network.embeddings)
    tables = [table for slot in slots.values() for table in slot.values() if table.ndim == 2]
    problems += table_problems(settings.tables, [table.shape[1] for table in tables])
    if problems:
        raise JobError("\n".join(problems))
    golden, made = golden_rows(schema, sample, settings.golden_rows)
    rows = pl.concat([sample.select(map(named, golden.columns)), made])
    expected = torch_scores(network, schema, rows, job.data.negative_rate)
    layers = release_layers(schema, slots, network.model, context=settings.context, opset=opset)
    labels = sample[job.features.label].to_numpy().astype(np.uint8)
    of_sample = encoded_batch(schema, sample, labels)
    if settings.precision == "int8":
        parts = slot_parts(schema, slots, settings.context)
        layers = int8_layers(network, layers, parts, of_sample)
    cost = _cost(trained, slots, layers, of_sample, folder) if is_reduced(settings) else {}
    remaps = network.embeddings.remaps()
    graph = release_graph(
        schema,
        slots,
        layers,
        remaps=remaps,
        context=settings.context,
        negative_rate=job.data.negative_rate,
        opset=opset,
        stored=settings.tables,
    )
    with writing(folder.parent):  # the folder itself is a hidden one, of no use to a reader
        files = graph.write(folder / MODEL_NAME)
    remap_bytes = sum(rows.nbytes for slot in remaps.values() for rows in slot.values())
    size = ReleaseSize(
        tables=settings.tables,
        table_bytes=sum(table.num_bytes for table in graph.tables) + remap_bytes,
        float32_bytes=sum(table.nbytes for table in tables) + remap_bytes,
        release_bytes=sum(path.stat().st_size for path in files),
    )
    note(size.text())
    tolerance = own_tolerance(settings).bound
    described = Graph(
        inputs=_inputs(job, schema),
        outputs=(Output(name=OUTPUT),),
        golden=Golden(rows={}, outputs={}, tolerance=tolerance),
    )
    manifest = replace(manifest, kind=Scorer.kind, graphs={SCORE: described})
    scorer = Scorer(open_session(folder / MODEL_NAME), manifest)
    parity = check(scorer, expected, schema, rows, labels, settings)
    note(parity.text())
    golden = pl.concat([golden, made])
    scores = scorer.score(frame_to_arrays(golden, described.inputs))
    proof = Golden(
        rows=golden.to_dict(as_series=False), outputs={OUTPUT: scores.tolist()}, tolerance=tolerance
    )
    return replace(
        manifest,
        graphs={SCORE: replace(described, golden=proof)},
        parity=parity.values() | size.values() | cost,
    )


def _opset(job: Job, schema: Schema) -> int:
    """Return the operator set of the release."""
    steps = (step for column in schema.columns for step in column.steps)
    return job.export.opset or least_opset(steps)


def _cost(
    trained: Trained,
    slots: Mapping[str, SlotTables],
    layers: ModelProto,
    of_sample: Batch,
    folder: Path,
) -> dict[str, float]:
    """Return what int8 or float16 cost, for the manifest; ParityError where it is too much."""
    job, schema = trained.job, trained.schema
    graph = encoded_graph(
        schema,
        slots,
        layers,
        context=job.export.context,
        opset=_opset(job, schema),
        remaps=trained.network.embeddings.remaps(),
        stored=job.export.tables,
    )
    batches = [of_sample] if trained.valid is None else trained.valid().epoch(0)
    cost = measured_cost(trained.network, graph, schema, batches, job.export, folder)
    note(cost.text())
    cost.require(job.export)
    return cost.values()


def _inputs(job: Job, schema: Schema) -> tuple[Input, ...]:
    return tuple(
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
