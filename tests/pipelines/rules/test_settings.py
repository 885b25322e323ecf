"""Settings of training: what the model, the machine and the precision must be, and compiled layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headwater.feature_store.errors import JobError
from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.base import CTRModel
from headwater.models.phases import Descend, Phase
from headwater.models.strategy import OneLoss
from headwater.pipelines.checking.validation import require_sound
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.rules.settings import setting_problems
from headwater.pipelines.training.train import train

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


def test_device_is_told_by_its_number_and_its_kind(
    tiny_job: TinyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, rank, says in (("cuda:2", 0, "device 2, found 2"), ("cuda", 3, "device 3, found")):
        (problem,) = setting_problems(tiny_job(device=device), Ranks(local_rank=rank))
        assert says in problem
    assert setting_problems(tiny_job(device="cuda"), Ranks(local_rank=1)) == []
    assert setting_problems(tiny_job(device="meta"), Ranks()) == [
        "train.device: 'meta' is not supported. Expected auto, cpu or cuda."
    ]


def test_a_type_of_tables_that_saves_nothing_is_refused_before_training(tiny_job: TinyJob) -> None:
    def with_int8(model: dict[str, Any]) -> Job:
        job = tiny_job(model)
        return job.model_copy(update={"export": job.export.model_copy(update={"tables": "int8"})})

    with pytest.raises(JobError, match=r"export\.tables: 'int8' saves nothing.*'float16'"):
        require_sound(with_int8({"type": "logistic_regression"}))
    require_sound(with_int8({"type": "deepfm", "embedding_dim": 4}))


def test_every_setting_that_cannot_train_has_a_line(tiny_job: TinyJob) -> None:
    model = {"type": "finalmlp", "embedding_dim": 6, "gate_1_context": ["usr"], "num_heads": 2}
    job = tiny_job(model=model, sparse={"mode": "fused"}, batch_size=1, device="gpu")
    problems = setting_problems(job, Ranks())
    keys = [problem.partition(":")[0] for problem in problems]
    assert keys == [
        "model.gate_1_context",
        "model.embedding_dim",
        "train.device",
        "train.batch_size",
    ]


class OnlyDense(OneLoss):
    """A strategy that needs the sum of several passes."""

    modes = ("dense",)


class ManyPasses(CTRModel):
    """A model that is trained by it, with first-order weights for its tables."""

    config_class = ModelConfig

    @classmethod
    def slots(cls, config: ModelConfig) -> dict[str, Slot]:
        return {"first_BF1": Slot(1), "price_BFD": Slot(config.embedding_dim, ("price",))}

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        return (Descend(OnlyDense, name="first"), Descend(OnlyDense))


def test_mode_that_a_strategy_cannot_train_is_refused_before_any_work(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    model = {"type": f"{__name__}:ManyPasses", "embedding_dim": 6}
    job = tiny_job(model=model, sparse={"mode": "fused"})
    # Nothing is said of the dimension: its slot has no table, and first-order weights are padded.
    says = "train.sparse.mode: 'fused' cannot be trained by OnlyDense. Set train.sparse.mode = 'dense'."
    assert setting_problems(job, Ranks()) == [says]
    with pytest.raises(JobError, match=re.escape(says)):
        train(job, tiny_prepared, runs=tmp_path)
    assert not list(tmp_path.iterdir())
    assert setting_problems(tiny_job(model=model, sparse={"mode": "dense"}), Ranks()) == []


@pytest.mark.parametrize(
    ("model", "processes", "size", "says"),
    [
        ({"type": "dnn", "batch_norm": True}, 1, 1, r"at least 2: .*\(model\.batch_norm\)"),
        ({"type": "finalmlp"}, 1, 1, r"at least 2: .*\(model\.batch_norm_1, model\.batch_norm_2\)"),
        ({"type": "finalmlp"}, 3, 5, "at least 6: .* two rows a step in each of 3 processes"),
        ({"type": "dnn"}, 3, 2, "at least 3: a step needs a row in each of 3 processes"),
    ],
)
def test_batch_too_small_for_a_step_is_refused_by_its_key(
    model: dict[str, Any],
    processes: int,
    size: int,
    says: str,
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    job = tiny_job(model=model, batch_size=size)
    for refuse in (lambda: require_sound(job), lambda: train(job, tiny_prepared, runs=tmp_path)):
        with pytest.raises(JobError, match=f"train.batch_size: found {size}, expected {says}"):
            refuse()
    require_sound(tiny_job(model=model, batch_size=2 * processes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "model",
    [{"type": "dnn"}, {"type": "dnn", "hidden": [], "batch_norm": True}],
    ids=["off", "without a layer"],
)
def test_batch_of_one_row_trains_without_batch_normalisation(
    model: dict[str, Any], tiny_job: TinyJob
) -> None:
    require_sound(tiny_job(model=model, batch_size=1))


def test_tables_that_train_in_one_process_are_refused_in_several(
    tiny_job: TinyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(JobError, match=r"train\.sparse\.mode: 'lazy' trains in one process, but 2"):
        require_sound(tiny_job(sparse={"mode": "lazy"}))
    # `auto` is `fused` in several processes, which has a rule of its own.
    with pytest.raises(JobError, match=r"model\.embedding_dim: 6 is not a multiple of 4"):
        require_sound(tiny_job(model={"type": "dnn", "embedding_dim": 6}))


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no bfloat16 instructions"
)
def test_bfloat16_learns_almost_as_float32(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    found = {
        precision: train(tiny_job(precision=precision), tiny_prepared, runs=tmp_path)
        .metrics.history[-1]
        .valid["auc"]
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
        train(tiny_job(model=model, compile=flag), tiny_prepared, runs=tmp_path)
        .metrics.history[-1]
        .valid["auc"]
        for flag in (False, True)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
