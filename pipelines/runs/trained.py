"""The trained network of a run."""

from __future__ import annotations

import torch

from headwater.feature_store.errors import RunError
from headwater.models.placement.place import Placement, place
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.resolved import job_network
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import Run


def load_trained(run: Run, prepared: Prepared, device: torch.device) -> Placement:
    """Return the network of a run with the weights of its best epoch, in evaluation mode, to score with.

    One process suffices, whatever the number that trained. RunError where there is no checkpoint, or
    where it was trained with another schema.
    """
    parts = Checkpoints(run.checkpoint).load("best")
    if parts is None:
        raise RunError(
            f"{run.checkpoint}: no checkpoint yet. Train first, or go on with "
            f"`headwater train --resume {run.path}`."
        )
    network = parts["network"]
    if network["schema_hash"] != prepared.schema.hash:
        raise RunError(
            f"{run.path}: trained with schema {network['schema_hash'][:12]}, but the prepared data "
            f"has {prepared.schema.hash[:12]}: the data or [features] changed since. Train again."
        )
    placement = place(job_network(run.trained_job, prepared), device)
    placement.load_weights(network["weights"])
    placement.module.eval()
    return placement
