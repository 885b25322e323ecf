"""Settings of `[train]` that cannot train here: each is told by its key, before hours of work are spent.

Here means this machine, and as many processes as torchrun started.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import torch

from headwater.feature_store.errors import JobError
from headwater.models.network import least_rows
from headwater.pipelines.job import Job, read_model
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.resolved import how_tables_learn


def check_settings(job: Job, ranks: Ranks) -> torch.device:
    """Return the device of this rank; JobError has a line for each setting that cannot train here."""
    device = torch.device("cpu")
    problems: list[str] = []
    try:
        device = _choose_device(job, ranks)
        _check_precision(job, device)
    except JobError as error:
        problems.append(str(error))
    problems += [*_table_problems(job, ranks), *_monitor_problems(job), *_size_problems(job, ranks)]
    if problems:
        raise JobError("\n".join(problems))
    return device


def _choose_device(job: Job, ranks: Ranks) -> torch.device:
    """Return the device of this rank; JobError where the machine does not have what the job names."""
    wanted = job.train.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        near = difflib.get_close_matches(wanted, ("auto", "cpu", "cuda"), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise JobError(
            f"train.device: unknown device {wanted!r}.{hint} Expected auto, cpu, cuda or cuda:N."
        ) from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise JobError(f"train.device: {wanted!r} is not supported. Expected auto, cpu or cuda.")
    found = torch.cuda.device_count()
    index = ranks.local_rank if ":" not in wanted else device.index
    if index >= found:
        raise JobError(
            f"train.device: {wanted!r} needs CUDA device {index}, found {found}. "
            "Set train.device = 'cpu', or see `headwater doctor`."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _check_precision(job: Job, device: torch.device) -> None:
    """Raise JobError for bfloat16 on a CPU that would have to emulate it, about ten times slower."""
    if job.train.precision != "bfloat16" or device.type == "cuda":
        return
    # torch has no public name for these.
    if not (
        torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
        or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    ):
        raise JobError(
            "train.precision: bfloat16 on this CPU would be emulated (it has neither avx512_bf16 "
            "nor amx). Set train.precision = 'float32', or train on a GPU."
        )


def _table_problems(job: Job, ranks: Ranks) -> Iterator[str]:
    mode, _ = how_tables_learn(job)
    if mode != "fused" and ranks.world_size > 1:
        yield (
            f"train.sparse.mode: {mode!r} trains in one process, but {ranks.world_size} were "
            "started. Set train.sparse.mode = 'fused', or start one process."
        )


def _monitor_problems(job: Job) -> Iterator[str]:
    if job.train.monitor == "gauc" and not (job.features.group or job.features.user):
        yield (
            "train.monitor: 'gauc' needs groups of rows, but neither features.group nor "
            "features.user is set. Set one of them, or train.monitor = 'auc'."
        )


def _size_problems(job: Job, ranks: Ranks) -> Iterator[str]:
    size, num_ranks = job.train.batch_size, ranks.world_size
    if size >= 2 * num_ranks:
        return  # enough for every model, so that none need be built
    try:
        model_class, config = read_model(job.model.type, job.model.settings())
    except JobError:
        return  # told where the model's own settings are
    least = num_ranks * least_rows(model_class(config, num_features=len(job.features.columns)))
    if size >= least:
        return
    each = "" if num_ranks == 1 else f" in each of {num_ranks} processes"
    remedies = ["Raise train.batch_size"]
    if least == num_ranks:
        why = f"a step needs a row{each}"
    else:
        keys = [f"model.{key}" for key, on in config if key.startswith("batch_norm") and on is True]
        named = f" ({', '.join(keys)})" if keys else ""
        why = f"batch normalisation{named} needs two rows a step{each}"
        remedies += [f"set {' and '.join(keys)} to false"] if keys else []
    remedies += ["start fewer processes"] if num_ranks > 1 else []
    yield (
        f"train.batch_size: found {size}, expected at least {least}: {why}. {', or '.join(remedies)}."
    )
