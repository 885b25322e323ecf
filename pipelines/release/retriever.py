"""The release of a retrieval model: a graph of queries, the items with their vectors, and an index.

Q queries, D dimension, I items.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from headwater.feature_store.errors import JobError, ParityError, ShardError
from headwater.feature_store.onnx_graph import LEAST_OPSET
from headwater.feature_store.schema import FIRST_CODE, MISSING_CODE, UNKNOWN_CODE, Schema
from headwater.models.retrieval.base import RetrievalModel, ScoreModel, VectorModel
from headwater.models.retrieval.interactions import Queries
from headwater.pipelines.console import note
from headwater.pipelines.events import row_keys
from headwater.pipelines.family import Trained
from headwater.pipelines.output import writing
from headwater.pipelines.release.index import write_index
from headwater.pipelines.release.query_graph import (
    SCORE_OUTPUTS,
    has_score_graph,
    query_input,
    score_graph,
    vector_graph,
    vector_outputs,
)
from headwater.pipelines.teaching.queries import Asked
from headwater.serving.kinds.graph import open_session
from headwater.serving.kinds.retriever import FILES, GOLDEN_K, INDEX, ITEMS, VECTORS
from headwater.serving.manifest import (
    ALLOWED,
    ITEM,
    ITEM_SCORE,
    KNOWN,
    QUERY,
    TOP_K,
    VECTOR,
    Golden,
    Graph,
    Input,
    Manifest,
    Retrieval,
)
from headwater.serving.signature import columns_to_arrays

QUERY_NAME = "query.onnx"
SAMPLE_QUERIES = 512
"""Real queries that a release is compared by."""


def write_retriever(trained: Trained, manifest: Manifest, folder: Path) -> Manifest:
    """Write the files of a retriever into `folder`, prove them, and describe them in the manifest.

    Raises JobError where the model or a setting has no release, ParityError where the graph differs from the
    network by more than `export.tolerance`.
    """
    job, schema, settings = trained.job, trained.schema, trained.job.export
    model = cast("VectorModel | ScoreModel", trained.network.model)
    log = job.interactions
    assert log is not None, "a rule refuses a retrieval model without a log"
    if problems := _problems(model, settings.precision, settings.tables, settings.context):
        raise JobError("\n".join(problems))
    if trained.items is None or not trained.items.exists():
        raise ShardError(
            "prepared data of this run has no items.arrow. Prepare and train it again."
        )
    opset = settings.opset or LEAST_OPSET
    longest = type(model).longest_of(model.config)
    by_user = model.query == "user"
    model.eval()
    with torch.no_grad():
        model.refresh()
    if isinstance(model, VectorModel):
        graph = vector_graph(schema, model, longest=longest, opset=opset)
        outputs = vector_outputs(model)
    else:
        graph, outputs = score_graph(schema, model, opset=opset), SCORE_OUTPUTS
    with writing(folder.parent):  # the folder itself is a hidden one, of no use to a reader
        graph.write(folder / QUERY_NAME)
        shutil.copyfile(trained.items, folder / FILES[ITEMS])
    asked = _asked(trained, by_user=by_user)
    real = min(len(asked), SAMPLE_QUERIES)
    sample = [*asked[:real], *_made_up(schema, asked, longest, by_user=by_user)]
    column = query_input(schema, by_user=by_user)
    found = _run(folder / QUERY_NAME, column, sample, len(row_keys(schema.columns[-1])), model)
    expected = _expected(model, schema, sample, longest, by_user=by_user)
    difference = _difference(model, expected, found, settings.tolerance)
    note(
        f"parity   max {difference:.2e} between torch and onnxruntime over {len(sample):,} queries"
    )
    retrieval = Retrieval(query=model.query, mask_seen=log.mask_seen is not False, index="graph")
    artefacts = {ITEMS: FILES[ITEMS]}
    if isinstance(model, VectorModel):
        vector_ID = np.ascontiguousarray(model.items().detach().numpy()[FIRST_CODE:], np.float32)
        with writing(folder.parent):
            np.save(folder / FILES[VECTORS], vector_ID)
            tuned = write_index(folder / FILES[INDEX], vector_ID, found[VECTOR][:real])
        artefacts[VECTORS] = FILES[VECTORS]
        retrieval = replace(retrieval, index="exact")
        if tuned is not None:
            artefacts[INDEX] = FILES[INDEX]
            retrieval = replace(retrieval, index="ivf", nprobe=tuned.nprobe, recall=tuned.recall)
    chosen = [*range(min(real, settings.golden_rows)), *range(real, len(sample))]
    described = Graph(
        file=QUERY_NAME,
        inputs=(column,),
        outputs=outputs,
        golden=Golden(
            rows={column.name: [sample[i] for i in chosen]},
            outputs={
                output.name: found[output.name][chosen].tolist()
                for output in outputs
                if output.name != ITEM
            },
            tolerance=settings.tolerance,
        ),
    )
    return replace(
        manifest,
        kind="retriever",
        retrieval=retrieval,
        graphs={QUERY: described},
        artefacts=artefacts,
        parity={
            "max_abs_diff": difference,
            "release_bytes": float(sum(path.stat().st_size for path in folder.iterdir())),
        },
    )


def _problems(
    model: RetrievalModel, precision: str, tables: str, context: Sequence[str]
) -> list[str]:
    """Return what a retriever cannot have."""
    found: list[str] = []
    if isinstance(model, ScoreModel) and not has_score_graph(model):
        found.append(f"model.type: {type(model).__name__} has no graph of its best items.")
    if precision != "float32":
        found.append("export.precision: a retriever has float32 layers. Leave it out.")
    if tables != "float32":
        found.append("export.tables: a retriever has float32 vectors. Leave it out.")
    if context:
        found.append("export.context: a retriever has none. Leave it out.")
    return found


def _asked(trained: Trained, *, by_user: bool) -> list[Any]:
    """Return the raw queries of the validation rows: users, or histories."""
    schema = trained.schema
    asked = None if trained.valid is None else cast("Asked", trained.valid())
    if asked is None:
        return []
    if by_user:
        users = row_keys(schema.columns[0])
        return [users[int(row) - FIRST_CODE] for row in asked.user_Q]
    items = row_keys(schema.columns[-1])
    return [
        [items[int(row) - FIRST_CODE] for row in asked.history.of(query)]
        for query in range(min(asked.rows, SAMPLE_QUERIES))
    ]


def _made_up(
    schema: Schema, asked: Sequence[Any], longest: int | None, *, by_user: bool
) -> list[Any]:
    """Return queries beyond the real ones: an unknown user; or nothing, an unknown item, a long history."""
    column, raw = schema.columns[0 if by_user else -1], schema.raw[0 if by_user else -1]
    unknown = _unknown(row_keys(column), text=raw.dtype == "string")
    if by_user:
        return [unknown, None]
    items = list(row_keys(column))
    long = [items[place % len(items)] for place in range((longest or 50) + 7)]
    real = asked[0] if asked else items[:1]
    return [[], [unknown], [unknown, *real, None, *real], [*long, unknown]]


def _unknown(keys: Sequence[int | str], *, text: bool) -> int | str:
    known, number = set(keys), 0
    while (str(number) if text else number) in known or (text and not number):
        number += 1
    return str(number) if text else number


def _run(
    path: Path, column: Input, asked: Sequence[Any], num_items: int, model: RetrievalModel
) -> dict[str, NDArray[Any]]:
    """Return the outputs of the graph by name."""
    session = open_session(path)
    feeds = columns_to_arrays((column,), {column.name: asked})
    if isinstance(model, ScoreModel):
        feeds[TOP_K] = np.array([min(GOLDEN_K, num_items)])
        feeds[ALLOWED] = np.ones((1, num_items), np.bool_)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, cast("list[NDArray[Any]]", session.run(names, feeds)), strict=True))


def _expected(
    model: VectorModel | ScoreModel,
    schema: Schema,
    asked: Sequence[Any],
    longest: int | None,
    *,
    by_user: bool,
) -> NDArray[np.float32]:
    """Return what the network gives: vectors [Q, D], or scores of all items [Q, I]."""
    column = schema.columns[0 if by_user else -1]
    row = {key: place + FIRST_CODE for place, key in enumerate(row_keys(column))}
    users = (
        [row.get(each, UNKNOWN_CODE) for each in asked] if by_user else [UNKNOWN_CODE] * len(asked)
    )
    histories = [] if by_user else [[row[each] for each in items if each in row] for items in asked]
    histories = [items[-longest:] if longest else items for items in histories] or [[]] * len(asked)
    width = max(map(len, histories))
    item_BL = torch.tensor(
        [[*items, *[MISSING_CODE] * (width - len(items))] for items in histories]
    )
    length_B = torch.tensor([len(items) for items in histories])
    queries = Queries(torch.tensor(users), item_BL.long(), length_B)
    with torch.no_grad():
        if isinstance(model, VectorModel):
            return model.queries(queries).numpy()
        return model.scores(queries).numpy()[:, FIRST_CODE:]


def _difference(
    model: VectorModel | ScoreModel,
    expected: NDArray[np.float32],
    found: dict[str, NDArray[Any]],
    tolerance: float,
) -> float:
    """Return the largest difference of the graph from the network; ParityError where it is too large."""
    if isinstance(model, VectorModel):
        own = found[VECTOR]
    else:
        # The scores of the items that are given, and the best ones: ties may change places.
        at_items = np.take_along_axis(expected, found[ITEM], 1)
        best = -np.sort(-expected, 1)[:, : at_items.shape[1]]
        expected = np.concatenate([at_items, best], 1)
        own = np.concatenate([found[ITEM_SCORE]] * 2, 1)
    difference = np.abs(own - expected)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    if not difference[worst] <= tolerance:
        raise ParityError(
            f"the graph differs from the network by {difference[worst]:.3g} in query {int(worst[0])} of the "
            f"sample (torch {expected[worst]:.9g}, onnxruntime {own[worst]:.9g}; known items "
            f"{int(found[KNOWN][worst[0]])}), more than export.tolerance = {tolerance:g}. Raise it if the "
            "difference is rounding, otherwise the model does something else when exported."
        )
    return float(difference[worst])
