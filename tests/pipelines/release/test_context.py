"""A context given once is computed for one row, up to and with the first dense layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from headwater.models.ctr.dcnv2 import DCNv2, DCNv2Config
from headwater.models.ctr.dnn import DNN, DNNConfig
from headwater.models.ctr.finalmlp import FinalMLP, FinalMLPConfig
from headwater.models.ctr.optembed import OptEmbed
from headwater.models.ctr.optembed_config import OptEmbedConfig
from headwater.pipelines.release.context import SlotParts, split_context
from headwater.pipelines.release.graph import dense_layers

FEATURES, DIM = 5, 4
PARTS = SlotParts(once=(0, 3), each=(1, 2, 4))


def split(model: nn.Module, parts: dict[str, SlotParts]) -> ModelProto:
    dims = {name: (len(part.once) + len(part.each), DIM) for name, part in parts.items()}
    model.eval()
    found = split_context(dense_layers(model, dims), parts)
    onnx.checker.check_model(found, full_check=True)
    return found


def run(model: ModelProto, feeds: dict[str, Any], output: str = "") -> np.ndarray:
    if output:
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run([output or "logit"], feeds)[0])


def embeddings(num_rows: int, num_features: int = FEATURES) -> np.ndarray:
    random = np.random.default_rng(num_rows)
    return random.normal(size=(num_rows, num_features, DIM)).astype(np.float32)


def repeated(emb: np.ndarray, positions: tuple[int, ...]) -> np.ndarray:
    """Return rows that have the context of the first."""
    same = emb.copy()
    same[:, list(positions)] = emb[:1, list(positions)]
    return same


def finalmlp(gate_1: tuple[str, ...] = (), gate_2: tuple[str, ...] = ()) -> FinalMLP:
    config = FinalMLPConfig(
        embedding_dim=DIM,
        hidden_1=(20,),
        hidden_2=(10,),
        gate_hidden=(8,),
        gate_1_context=gate_1,
        gate_2_context=gate_2,
    )
    model = FinalMLP(config, num_features=FEATURES)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return model


@pytest.mark.parametrize(
    "model",
    [
        DNN(DNNConfig(embedding_dim=DIM, hidden=(16,)), num_features=FEATURES),
        DCNv2(DCNv2Config(embedding_dim=DIM, hidden=(16,)), num_features=FEATURES),
    ],
    ids=["dnn", "dcnv2"],
)
def test_one_row_of_context_scores_as_the_same_repeated(model: nn.Module) -> None:
    found = split(model, {"emb_BFD": PARTS})
    for rows in (1, 7):
        emb = repeated(embeddings(rows), PARTS.once)
        expected = model(torch.from_numpy(emb)).detach().numpy()
        for given in (1, rows):
            feeds = {
                "emb_BFD.once": emb[:given, list(PARTS.once)],
                "emb_BFD.each": emb[:, list(PARTS.each)],
            }
            np.testing.assert_allclose(run(found, feeds), expected, atol=1e-5)


def test_the_share_of_the_context_in_the_first_layer_has_one_row() -> None:
    model = finalmlp()
    found = split(model, {"emb_BFD": PARTS})
    shares = [node for node in found.graph.node if node.output[0].endswith("/once")]
    assert [node.op_type for node in shares] == ["Gemm", "Gemm"]
    emb = repeated(embeddings(7), PARTS.once)
    feeds = {
        "emb_BFD.once": emb[:1, list(PARTS.once)],
        "emb_BFD.each": emb[:, list(PARTS.each)],
    }
    expected = model(torch.from_numpy(emb)).detach().numpy()
    np.testing.assert_allclose(run(found, feeds), expected, atol=1e-5)
    assert [run(found, feeds, node.output[0]).shape for node in shares] == [(1, 20), (1, 10)]
    assert not any(node.op_type in ("Expand", "Concat") for node in found.graph.node)


def test_a_gate_of_the_context_has_one_row_and_one_of_candidates_many() -> None:
    once, each = SlotParts(once=(0,), each=()), SlotParts(once=(), each=(0,))
    model = finalmlp(("a",), ("b",))
    found = split(model, {"emb_BFD": PARTS, "gate_1_BCD": once, "gate_2_BCD": each})
    emb, gate_1, gate_2 = repeated(embeddings(7), PARTS.once), embeddings(1, 1), embeddings(7, 1)
    feeds = {
        "emb_BFD.once": emb[:1, list(PARTS.once)],
        "emb_BFD.each": emb[:, list(PARTS.each)],
        "gate_1_BCD": gate_1,
        "gate_2_BCD": gate_2,
    }
    expected = model(
        torch.from_numpy(emb),
        torch.from_numpy(gate_1.repeat(7, axis=0)),
        torch.from_numpy(gate_2),
    )
    np.testing.assert_allclose(run(found, feeds), expected.detach().numpy(), atol=1e-5)
    gates = [node.output[0] for node in found.graph.node if node.op_type == "Sigmoid"]
    assert sorted(run(found, feeds, gate).shape[0] for gate in gates) == [1, 7]


@pytest.mark.parametrize(
    "base",
    [
        {"type": "dnn", "hidden": (16,)},
        {"type": "deepfm", "hidden": (16,)},
        {"type": "dcnv2", "hidden": (16,)},
        {"type": "finalmlp", "hidden_1": (20,), "hidden_2": (10,), "gate_hidden": (8,)},
    ],
    ids=["dnn", "deepfm", "dcnv2", "finalmlp"],
)
def test_slots_of_several_dimensions_are_followed_side_by_side(base: dict[str, Any]) -> None:
    dimensions = {"a": 4, "b": 2, "c": 4, "d": 2, "e": 1, "f": 3}
    config = OptEmbedConfig.model_validate(
        {"base": {"embedding_dim": DIM, **base}, "dimensions": dimensions}
    )
    model = OptEmbed(config, num_features=6)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    # Of context alone, of both, of candidates alone.
    parts = {
        "emb_1": SlotParts(once=(0,), each=()),
        "emb_2": SlotParts(once=(1,), each=(0,)),
        "emb_3": SlotParts(once=(), each=(0,)),
        "emb_4": SlotParts(once=(0,), each=(1,)),
    }
    dims = {name: (len(part.once) + len(part.each), int(name[4:])) for name, part in parts.items()}
    if "first_BF1" in model.slots(config):
        parts["first_BF1"] = SlotParts(once=(0, 3, 4), each=(1, 2, 5))
        dims["first_BF1"] = (6, 1)
    found = split_context(dense_layers(model.eval(), dims), parts)
    onnx.checker.check_model(found, full_check=True)
    random = np.random.default_rng(0)
    values, feeds = {}, {}
    for name, part in parts.items():
        emb = random.normal(size=(7, *dims[name])).astype(np.float32)
        values[name] = torch.from_numpy(repeated(emb, part.once))
        if part.once and part.each:
            feeds[f"{name}.once"] = values[name].numpy()[:1, list(part.once)]
            feeds[f"{name}.each"] = values[name].numpy()[:, list(part.each)]
        else:
            feeds[name] = values[name].numpy()[: 1 if part.once else 7]
    expected = model(**values).detach().numpy()
    np.testing.assert_allclose(run(found, feeds), expected, atol=1e-5)
    shares = [node.output[0] for node in found.graph.node if node.output[0].endswith("/once")]
    if base["type"] != "dcnv2":
        assert {run(found, feeds, name).shape[0] for name in shares if "/" in name} == {1}
        assert any(node.op_type == "Gemm" and node.output[0] in shares for node in found.graph.node)


class Product(nn.Module):
    """The inner products of two slots, which cannot be followed."""

    def forward(self, a_BFD: Tensor, b_BFD: Tensor) -> Tensor:
        return torch.bmm(a_BFD, b_BFD.transpose(1, 2)).sum((1, 2))


def test_what_is_not_followed_is_repeated_for_each_row() -> None:
    model = Product()
    parts = {"a_BFD": SlotParts((0,), ()), "b_BFD": SlotParts((), (0, 1))}
    a, b = embeddings(1, 1), embeddings(7, 2)
    found = run(split(model, parts), {"a_BFD": a, "b_BFD": b})
    expected = model(torch.from_numpy(a.repeat(7, axis=0)), torch.from_numpy(b))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
