"""The dense part of a model goes through torch's exporter; onnxruntime gives the same logits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from headwater.models.registry import load_model

NUM_FEATURES = 5
CASES: dict[str, dict[str, Any]] = {
    "finalmlp": {
        "embedding_dim": 4,
        "hidden_1": (16, 8),
        "hidden_2": (8,),
        "num_heads": 2,
        "gate_hidden": (8,),
        "gate_1_context": ("a", "b"),
    },
    "deepfm": {"embedding_dim": 4, "hidden": (16,)},
    "dcnv2": {"embedding_dim": 4, "hidden": (16,)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_dense_part_exports_with_a_free_batch_size(name: str) -> None:
    torch.manual_seed(0)
    model_class = load_model(name)
    config = model_class.config_class(**CASES[name])
    model = model_class(config, num_features=NUM_FEATURES).eval()
    slots = model_class.slots(config)
    num_columns = {
        slot: NUM_FEATURES if wanted.columns is None else len(wanted.columns)
        for slot, wanted in slots.items()
    }

    def inputs(size: int) -> dict[str, torch.Tensor]:
        return {
            slot: torch.randn(size, num_columns[slot], wanted.dim) for slot, wanted in slots.items()
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of torch's own deprecations
        program = torch.onnx.export(
            model,
            kwargs=inputs(3),
            dynamo=True,
            opset_version=18,
            dynamic_shapes={slot: {0: torch.export.Dim.DYNAMIC} for slot in slots},
            verbose=False,
        )
    assert program is not None
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for size in (1, 7):
        batch = inputs(size)
        # torch.export writes argument names in lower case.
        feed = {slot.lower(): value.numpy() for slot, value in batch.items()}
        logit_B = np.asarray(session.run(None, feed)[0])
        with torch.no_grad():
            np.testing.assert_allclose(logit_B, model(**batch).numpy(), atol=1e-5)
