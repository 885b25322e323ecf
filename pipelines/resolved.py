"""A job with what it leaves open decided, and the network that it then declares."""

from __future__ import annotations

import torch

from headwater.models.network import Network
from headwater.models.placement.settings import LearnSettings
from headwater.models.tables.embeddings import Mode
from headwater.pipelines.family import family_of
from headwater.pipelines.job import Job
from headwater.pipelines.job_model import job_model, with_model
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.ranks import Ranks, find_ranks


def resolve(job: Job) -> Job:
    """Return the job of one training, with what it leaves open: settings of its model, how tables learn.

    It has no `[tune]`. JobError for a wrong `[model]` setting.
    """
    _, config = job_model(job)
    mode, lr = how_tables_learn(job)
    sparse = job.train.sparse.model_copy(update={"mode": mode, "lr": lr})
    monitor = family_of(job).monitor_of(job)
    train = job.train.model_copy(update={"sparse": sparse, "monitor": monitor})
    return with_model(job.model_copy(update={"train": train, "tune": None}), config)


def how_tables_learn(job: Job) -> tuple[Mode, float]:
    """Return the table mode and the tables' learning rate, with what the job leaves open."""
    sparse = job.train.sparse
    mode = sparse.mode
    if mode == "auto":
        mode = "lazy" if find_ranks().world_size == 1 else "fused"
    return mode, sparse.lr or (0.02 if mode == "fused" else 1e-3)


def training_device(job: Job, ranks: Ranks) -> torch.device:
    """Return the device that a rank trains on, which this machine may lack.

    RuntimeError where `train.device` is the name of no device.
    """
    wanted = job.train.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", ranks.local_rank) if wanted == "cuda" else torch.device(wanted)


def learn_settings(job: Job) -> LearnSettings:
    """Return the settings of `[train]` by which a network learns."""
    _, sparse_lr = how_tables_learn(job)
    train = job.train
    return LearnSettings(
        sparse_lr=sparse_lr,
        sparse_l2=train.sparse.l2,
        dense_lr=train.dense.lr,
        dense_l2=train.dense.l2,
        clip_norm=train.clip_norm,
        precision=train.precision,
    )


def job_network(job: Job, prepared: Prepared, mode: Mode | None = None) -> Network:
    """Return the untrained network of a job on the CPU; JobError for a wrong `[model]` setting.

    Its tables are of the job's mode when `mode` is absent.
    """
    return family_of(job).network(job, prepared, mode or how_tables_learn(job)[0])
