"""Settings of training: what the model, the machine and the precision must be, and compiled layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwater.feature_store.errors import JobError
from headwater.pipelines.data.prepared import Prepared
from headwater.pipelines.job import Job
from headwater.pipelines.train import train

pytestmark = pytest.mark.timeout(120)  # the first use of TorchRec in a process takes long

TinyJob = Callable[..., Job]


def test_wrong_model_settings_are_named_with_their_path(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    model = {"type": "finalmlp", "num_heads": "many", "hiden_1": [4]}
    with pytest.raises(JobError) as found:
        train(tiny_job(model=model), tiny_prepared, runs=tmp_path)
    assert "model.hiden_1: unknown key. Did you mean 'hidden_1'?" in str(found.value)
    assert "model.num_heads: " in str(found.value)
    with pytest.raises(JobError, match="unknown model 'finalmpl'"):
        train(tiny_job(model={"type": "finalmpl"}), tiny_prepared, runs=tmp_path)


def test_device_and_precision_that_the_machine_lacks_are_refused(
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(JobError, match=r"train\.device: unknown device 'gpu!'"):
        train(tiny_job(device="gpu!"), tiny_prepared, runs=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(JobError, match=r"needs CUDA device 0, found 0.*headwater doctor"):
            train(tiny_job(device="cuda"), tiny_prepared, runs=tmp_path)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(JobError, match=r"train\.precision: bfloat16 on this CPU"):
        train(tiny_job(precision="bfloat16"), tiny_prepared, runs=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no bfloat16 instructions"
)
def test_bfloat16_learns_almost_as_float32(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    found = {
        precision: train(tiny_job(precision=precision), tiny_prepared, runs=tmp_path).read(
            "metrics.json"
        )["valid"]["auc"]
        for precision in ("float32", "bfloat16")
    }
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own parts
def test_compiled_model_learns_the_same(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    model = {"type": "dnn", "embedding_dim": 8, "hidden": [8], "dropout": 0.0}
    found = [
        train(tiny_job(model=model, compile=flag), tiny_prepared, runs=tmp_path).read(
            "metrics.json"
        )["valid"]["auc"]
        for flag in (False, True)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
