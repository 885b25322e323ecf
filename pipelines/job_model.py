"""The model of a job: its class, its settings once the features are known, and the columns that it adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.models.registry import may_add_columns
from headwater.pipelines.job import Job, ModelSection, read_model

if TYPE_CHECKING:
    from headwater.models.base import Model, ModelConfig


def job_model(job: Job) -> tuple[type[Model], ModelConfig]:
    """Return the model that a job names, and its settings with what the features decide.

    JobError for a wrong `[model]` setting.
    """
    model_class, config = read_model(job.model.type, job.model.settings())
    return model_class, config.complete(job.features.columns)


def with_model(job: Job, config: ModelConfig) -> Job:
    """Return the job with other settings of its model."""
    section = {"type": job.model.type, **config.model_dump(mode="json", exclude_none=True)}
    return job.model_copy(update={"model": ModelSection.model_validate(section)})


def with_columns(job: Job) -> Job:
    """Return the job with the columns that its model reads beside the declared ones, behind these."""
    if not may_add_columns(job.model.type):
        return job  # without importing torch, which preparing has no other need of
    model_class, config = job_model(job)
    added = model_class.columns(config, job.features.columns)
    features = job.features.model_copy(update={"columns": [*job.features.columns, *added]})
    return job.model_copy(update={"features": features}) if added else job
