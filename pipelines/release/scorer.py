"""The release of a model that scores rows: one graph from raw features to a score, compared with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from msgspec.structs import replace

from headwater.feature_store.errors import JobError
from headwater.feature_store.normalise import named
from headwater.feature_store.onnx_compiler import least_opset
from headwater.feature_store.schema import Schema
from headwater.pipelines.console import note
from headwater.pipelines.family import Trained
from headwater.pipelines.job import Job
from headwater.pipelines.output import writing
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
from headwater.pipelines.rules.release import context_problems, opset_problems
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.graph import open_session
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import MODEL_NAME, SCORE, Golden, Graph, Input, Manifest, Output


def write_scorer(trained: Trained, manifest: Manifest, folder: Path) -> Manifest:
    """Write the graph of a click model into `folder`, prove it, and describe it in the manifest.

    Raises JobError for a wrong `[export]` setting, ParityError where the graph differs from the network by
    more than `export.tolerance`, or int8 costs more AUC than `export.max_auc_cost`.
    """
    network, schema, job, sample = trained.network, trained.schema, trained.job, trained.sample
    settings = job.export
    steps = (step for column in schema.columns for step in column.steps)
    opset = settings.opset or least_opset(steps)
    problems = context_problems(settings.context, [column.name for column in schema.raw])
    problems += opset_problems(settings.opset, {each.name: each.steps for each in schema.columns})
    if problems:
        raise JobError("\n".join(problems))
    golden, made = golden_rows(schema, sample, settings.golden_rows)
    rows = pl.concat([sample.select(map(named, golden.columns)), made])
    expected = torch_scores(network, schema, rows, job.data.negative_rate)
    slots = slot_tables(network.embeddings)
    layers = release_layers(schema, slots, network.model, context=settings.context, opset=opset)
    labels = sample[job.features.label].to_numpy().astype(np.uint8)
    cost: dict[str, float] = {}
    tolerance, setting = settings.tolerance, "tolerance"
    if settings.precision == "int8":
        of_sample = encoded_batch(schema, sample, labels)
        layers, found = measured_int8(
            network,
            layers,
            slot_parts(schema, slots, settings.context),
            of_sample,
            [of_sample] if trained.valid is None else trained.valid().epoch(0),
            max_auc_cost=settings.max_auc_cost,
        )
        note(found.text())
        cost, tolerance, setting = found.values(), settings.int8_tolerance, "int8_tolerance"
    graph = release_graph(
        schema,
        slots,
        layers,
        remaps=network.embeddings.remaps(),
        context=settings.context,
        negative_rate=job.data.negative_rate,
        opset=opset,
    )
    with writing(folder.parent):  # the folder itself is a hidden one, of no use to a reader
        graph.write(folder / MODEL_NAME)
    described = Graph(
        inputs=_inputs(job, schema),
        outputs=(Output(name=OUTPUT),),
        golden=Golden(rows={}, outputs={}, tolerance=tolerance),
    )
    manifest = replace(manifest, kind=Scorer.kind, graphs={SCORE: described})
    scorer = Scorer(open_session(folder / MODEL_NAME), manifest)
    parity = check(scorer, expected, schema, rows, labels, tolerance=tolerance, setting=setting)
    note(parity.text())
    golden = pl.concat([golden, made])
    scores = scorer.score(frame_to_arrays(golden, described.inputs))
    proof = Golden(
        rows=golden.to_dict(as_series=False), outputs={OUTPUT: scores.tolist()}, tolerance=tolerance
    )
    return replace(
        manifest,
        graphs={SCORE: replace(described, golden=proof)},
        parity=parity.values() | cost,
    )


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
