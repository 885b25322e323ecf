"""Rules of `[model]` and `[train]`, and of `[export]` by the model: settings that cannot work here, by key.

Here means this machine, and as many processes as torchrun started. No data is needed to tell.
"""

from __future__ import annotations

import torch

from headwater.feature_store.errors import JobError, did_you_mean
from headwater.models.base import Model, ModelConfig
from headwater.models.network import column_problems
from headwater.models.strategy import mode_problem
from headwater.models.tables.layout import fused_problems
from headwater.pipelines.family import Family, find_family
from headwater.pipelines.job import Job
from headwater.pipelines.job_model import job_model
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.resolved import how_tables_learn, training_device
from headwater.pipelines.rules.release import table_problems


def setting_problems(job: Job, ranks: Ranks) -> list[str]:
    """Return a line for each setting of `[model]` and `[train]` that cannot train here, or be released."""
    problems = [*_device_problems(job, ranks), *_rank_problems(job, ranks)]
    try:
        model_class, config = job_model(job)
    except JobError as error:
        return [*str(error).splitlines(), *problems]
    features = job.features.columns
    names = [each.name for each in (*features, *model_class.columns(config, features))]
    family = find_family(model_class.family)
    return [
        *column_problems(names, model_class, config),
        *_table_problems(job, model_class, config),
        *table_problems(job.export.tables, _table_dims(job, model_class, config)),
        *_search_problems(ranks, model_class, config),
        *problems,
        *_monitor_problems(job, family),
        *family.problems(job),
        *_size_problems(job, ranks, family, config),
    ]


def _table_problems(job: Job, model_class: type[Model], config: ModelConfig) -> list[str]:
    """Return why the tables of a model cannot be trained in the mode of the job."""
    mode, _ = how_tables_learn(job)
    phases = [phase for phase in model_class.phases(config) if phase.mode is None]
    strategies = (each for phase in phases for each in phase.strategies)
    problems = [mode_problem(each, mode) for each in strategies if mode not in each.modes]
    if mode == "fused":
        problems += fused_problems(_table_dims(job, model_class, config))
    return list(dict.fromkeys(problems))


def _table_dims(job: Job, model_class: type[Model], config: ModelConfig) -> list[int]:
    """Return the dimension of each slot that has tables; features that are numbers have none."""
    features = job.features.columns
    columns = (*features, *model_class.columns(config, features))
    with_codes = [each.name for each in columns if not each.is_dense]
    return [
        slot.dim
        for slot in model_class.slots(config).values()
        if any(slot.columns is None or name in slot.columns for name in with_codes)
    ]


def _search_problems(ranks: Ranks, model_class: type[Model], config: ModelConfig) -> list[str]:
    """Return a line for what only one process can train, where several were started."""
    if ranks.world_size == 1:
        return []
    if not model_class.slots(config):
        if not model_class.needs_whole_batch:
            return []
        return [
            (
                f"model: {model_class.__name__} compares the rows of a batch with each other and trains in "
                f"one process, but {ranks.world_size} were started. Start one."
            )
        ]
    return [
        f"model: the phase {phase.name!r} of {model_class.__name__} runs in one process, but "
        f"{ranks.world_size} were started. Run `headwater search` in one process, then set "
        "model.architecture to what it finds."
        for phase in model_class.phases(config)
        if phase.mode in ("dense", "lazy")
    ]


def _device_problems(job: Job, ranks: Ranks) -> list[str]:
    """Return why this rank has no such device, or cannot compute on it in the precision of the job."""
    wanted = job.train.device
    try:
        device = training_device(job, ranks)
    except RuntimeError:
        hint = did_you_mean(wanted, ("auto", "cpu", "cuda"))
        return [
            f"train.device: unknown device {wanted!r}.{hint} Expected auto, cpu, cuda or cuda:N."
        ]
    if device.type == "cpu":
        return _emulation_problems(job)
    if device.type != "cuda":
        return [f"train.device: {wanted!r} is not supported. Expected auto, cpu or cuda."]
    found = torch.cuda.device_count()
    if device.index < found:
        return []
    return [
        (
            f"train.device: {wanted!r} needs CUDA device {device.index}, found {found}. "
            "Set train.device = 'cpu', or see `headwater doctor`."
        )
    ]


def _emulation_problems(job: Job) -> list[str]:
    """Return a line for bfloat16 on a CPU that would have to emulate it, about ten times slower."""
    # torch has no public name for these.
    if (
        job.train.precision != "bfloat16"
        or torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
        or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    ):
        return []
    return [
        (
            "train.precision: bfloat16 on this CPU would be emulated (it has neither avx512_bf16 "
            "nor amx). Set train.precision = 'float32', or train on a GPU."
        )
    ]


def _rank_problems(job: Job, ranks: Ranks) -> list[str]:
    """Return a line for tables that only one process can train, where several were started."""
    mode, _ = how_tables_learn(job)
    if mode == "fused" or ranks.world_size == 1:
        return []
    return [
        (
            f"train.sparse.mode: {mode!r} trains in one process, but {ranks.world_size} were "
            "started. Set train.sparse.mode = 'fused', or start one process."
        )
    ]


def _monitor_problems(job: Job, family: Family) -> list[str]:
    """Return a line for each part of the monitor that is no metric of the model's family."""
    return [
        f"train.monitor: {name!r} is no metric of a {family.name} model."
        f"{did_you_mean(name, family.metrics)}"
        for name in family.monitor_of(job).split("-")
        if name not in family.metrics
    ]


def _size_problems(job: Job, ranks: Ranks, family: Family, config: ModelConfig) -> list[str]:
    """Return a line for batches too small for a step."""
    size, num_ranks = job.train.batch_size, ranks.world_size
    if size >= 2 * num_ranks:
        return []  # enough for every model, so that none need be built
    least = num_ranks * family.least_rows(job, None)
    if size >= least:
        return []
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
    return [
        f"train.batch_size: found {size}, expected at least {least}: {why}. {', or '.join(remedies)}."
    ]
