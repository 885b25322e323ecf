"""The graph of a query reads histories as training does: the newest known items, or distinct ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.feature_store.schema import EncodedColumn, Lookup, Missing, RawColumn, Schema
from headwater.models.retrieval.ease import EASE, EASEConfig
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.models.retrieval.multi_dae import MultiDAE, MultiDAEConfig
from headwater.models.retrieval.sasrec import SASRec, SASRecConfig
from headwater.pipelines.release.query_graph import score_graph, vector_graph
from headwater.serving.manifest import ALLOWED, TOP_K, Input
from headwater.serving.signature import columns_to_arrays

KEYS = ["a", "b", "c", "d", "e", "f", "g"]
LONGEST = 3
Histories = list[list[str | None]]


def column(name: str, keys: list[str]) -> EncodedColumn:
    steps = (Lookup(keys=keys), Missing())
    return EncodedColumn(
        name=name, encoder="vocabulary", inputs=(name,), steps=steps, cardinality=len(keys) + 2
    )


SCHEMA = Schema(
    raw=(RawColumn(name="who", dtype="string"), RawColumn(name="what", dtype="string")),
    columns=(column("who", ["x", "y"]), column("what", KEYS)),
)
LOG = Interactions(4, 9, np.array([0, 0, 0, 4, 7]), np.array([2, 3, 4, 8, 5, 6, 7], np.int32))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Return models by name, each with a session of its graph."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(1)
    sequence = SASRec(SASRecConfig(embedding_dim=4, max_length=LONGEST), LOG)
    autoencoder = MultiDAE(MultiDAEConfig(embedding_dim=4, hidden=(3,)), LOG)
    linear = EASE(EASEConfig(l2=1.0), LOG)
    linear.solve(print)
    made: dict[str, tuple[Any, Any]] = {}
    for name, model in {"ordered": sequence, "set": autoencoder, "scores": linear}.items():
        model.eval()
        if name == "scores":
            graph = score_graph(SCHEMA, linear)
        else:
            longest = LONGEST if name == "ordered" else None
            graph = vector_graph(SCHEMA, model, longest=longest)  # type: ignore[arg-type]
        graph.write(folder / f"{name}.onnx")
        made[name] = model, onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return made


def asked(histories: Histories, longest: int | None) -> Queries:
    """Return histories as training has them, by the plain reading of the rule."""
    known = [[KEYS.index(each) + 2 for each in items if each in KEYS] for items in histories]
    known = [items[-longest:] if longest else items for items in known]
    width = max(map(len, known))
    item_BL = torch.tensor([[*items, *[0] * (width - len(items))] for items in known]).long()
    lengths = torch.tensor([len(items) for items in known])
    return Queries(torch.ones(len(known), dtype=torch.int64), item_BL, lengths)


HISTORIES = st.lists(
    st.lists(st.one_of(st.none(), st.sampled_from([*KEYS, "?", "!"])), max_size=8),
    min_size=1,
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=HISTORIES)
@pytest.mark.parametrize("name", ["ordered", "set"])
def test_vectors_are_those_of_the_model(
    compiled: dict[str, tuple[Any, Any]], name: str, histories: Histories
) -> None:
    model, session = compiled[name]
    arrays = columns_to_arrays(
        [Input(name="what", dtype="string", is_list=True)], {"what": histories}
    )
    vector_BD, known_B = session.run(["vector", "known"], arrays)
    queries = asked(histories, LONGEST if name == "ordered" else None)
    with torch.no_grad():
        expected_BD = model.queries(queries).numpy()
    assert np.allclose(vector_BD, expected_BD, atol=1e-6)
    assert ((known_B > 0) == (queries.length_B.numpy() > 0)).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=HISTORIES, k=st.integers(1, 7), data=st.data())
def test_the_best_items_are_those_of_the_scores_that_are_allowed(
    compiled: dict[str, tuple[Any, Any]], histories: Histories, k: int, data: st.DataObject
) -> None:
    model, session = compiled["scores"]
    rows = len(histories)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=7 * rows, max_size=7 * rows)))
    allowed_BI = allowed.reshape(rows, 7)
    arrays = columns_to_arrays(
        [Input(name="what", dtype="string", is_list=True)], {"what": histories}
    )
    arrays |= {TOP_K: np.array([k]), ALLOWED: allowed_BI}
    item_BK, score_BK = session.run(["item", "score"], arrays)
    score_BI = model.scores(asked(histories, None)).numpy()[:, 2:]
    masked_BI = np.where(allowed_BI, score_BI, -np.inf)
    best_BK = -np.sort(-masked_BI, 1)[:, :k]
    assert np.allclose(score_BK, best_BK, atol=1e-6)
    finite = np.isfinite(score_BK)
    assert np.take_along_axis(allowed_BI, item_BK, 1)[finite].all()


def test_layers_have_the_operator_set_of_the_graph(tmp_path: Path) -> None:
    model = SASRec(SASRecConfig(embedding_dim=4, max_length=LONGEST), LOG).eval()
    path = tmp_path / "query.onnx"
    vector_graph(SCHEMA, model, longest=LONGEST, opset=20).write(path)
    session = onnxruntime.InferenceSession(path)
    column = Input(name="what", dtype="string", is_list=True)
    outputs: Any = session.run(["vector"], columns_to_arrays([column], {"what": [["a", "b"]]}))
    with torch.no_grad():
        expected_BD = model.queries(asked([["a", "b"]], LONGEST)).numpy()
    assert np.allclose(outputs[0], expected_BD, atol=1e-6)


def test_a_large_table_lies_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.pipelines.release.builder.EXTERNAL_BYTES", 1)
    model = SASRec(SASRecConfig(embedding_dim=4, max_length=LONGEST), LOG).eval()
    files = vector_graph(SCHEMA, model, longest=LONGEST).write(tmp_path / "query.onnx")
    assert [path.name for path in files] == ["query.onnx", "tables.bin"]
