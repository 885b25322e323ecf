"""From a job to a network on its device with its optimisers, to train it."""

from __future__ import annotations

import torch

from headwater.feature_store.schema import Schema
from headwater.models.placement.place import Learner, Rates, place_learner
from headwater.pipelines.job import Job
from headwater.pipelines.resolved import how_tables_learn, job_network


def assemble(job: Job, schema: Schema, device: torch.device) -> Learner:
    """Return the untrained network of a job on `device`; JobError for a wrong `[model]` setting."""
    _, lr = how_tables_learn(job)
    train = job.train
    rates = Rates(
        sparse_lr=lr, sparse_l2=train.sparse.l2, dense_lr=train.dense.lr, dense_l2=train.dense.l2
    )
    return place_learner(job_network(job, schema), rates, device)
