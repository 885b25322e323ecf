"""Retrieval models: logs of users or baskets with items, queries, and metrics of ranked answers.

Q queries of a split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from headwater.feature_store.errors import TrainingError
from headwater.feature_store.schema import FIRST_CODE, Schema
from headwater.models.network import Network
from headwater.models.retrieval.base import RetrievalModel, ScoreModel, VectorModel
from headwater.models.retrieval.interactions import Interactions
from headwater.models.retrieval.network import build_retrieval_network
from headwater.models.tables.embeddings import Mode
from headwater.pipelines.evaluation.ranking import Ranked, rank
from headwater.pipelines.evaluation.ranking_metrics import METRICS, measure
from headwater.pipelines.evaluation.records import Evaluation
from headwater.pipelines.evaluation.retrieval_records import RetrievalEvaluation, RetrievalSplit
from headwater.pipelines.evaluation.retrieval_summary import Catalogue, summarise_ranking
from headwater.pipelines.events import row_keys
from headwater.pipelines.family import Examples, Family, Panel, Reading, Scoring, Trained
from headwater.pipelines.interactions import load_baskets, load_interactions
from headwater.pipelines.job import Job
from headwater.pipelines.job_interactions import InteractionLog
from headwater.pipelines.job_model import job_model
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.teaching.examples import (
    PairExamples,
    PrefixExamples,
    SequenceExamples,
    SetExamples,
    UserPairExamples,
)
from headwater.pipelines.teaching.queries import Asked, ask_baskets, ask_users
from headwater.pipelines.training.diagnose import diverged_weights
from headwater.serving.manifest import Manifest

MONITOR = "ndcg@10"


def problems(job: Job) -> list[str]:
    """Return what a job lacks for a retrieval model."""
    log = job.interactions
    if log is None:
        return [
            (
                f"model.type: {job.model.type!r} answers with items and learns from a log of them: declare "
                "[interactions] in place of [features]."
            )
        ]
    model_class, _ = job_model(job)
    query = cast("type[RetrievalModel]", model_class).query
    if log.basket is not None and query == "user":
        return [
            (
                f"model.type: {job.model.type!r} answers users that training knew, and interactions.basket "
                "names baskets. Choose a model that answers a history, or name interactions.user."
            )
        ]
    return []


def network(job: Job, prepared: Prepared, mode: Mode) -> Network:  # noqa: ARG001
    """Return the untrained network of a job; it has no tables, whatever their mode."""
    model_class, config = job_model(job)
    assert issubclass(model_class, RetrievalModel), "the family is the model's"
    seen = _training(job, prepared, verify=False)
    return build_retrieval_network(prepared.schema, model_class, config, seen, job.train.seed)


def examples(
    job: Job,
    prepared: Prepared,
    split: SplitName,
    reading: Reading,
    ranks: Ranks,
    device: torch.device,
) -> Examples:
    """Return what teaches a model, of train, or what it is asked, of other splits."""
    if split != "train":
        return asked(job, prepared, split, reading, device)
    model_class, config = job_model(job)
    model_class = cast("type[RetrievalModel]", model_class)
    given = (_training(job, prepared, verify=reading.verify), reading, ranks, device)
    match model_class.taught_of(config):
        case "pairs":
            draws = model_class.draws_of(config)
            return PairExamples(*given) if draws is None else UserPairExamples(*given, draws=draws)
        case "prefixes":
            return PrefixExamples(*given, longest=_longest(model_class.longest_of(config)))
        case "sequences":
            return SequenceExamples(*given, longest=_longest(model_class.longest_of(config)))
        case "sets":
            return SetExamples(*given)


def asked(
    job: Job, prepared: Prepared, split: SplitName, reading: Reading, device: torch.device
) -> Asked:
    """Return the queries of a measured split."""
    log = _log(job)
    model_class, config = job_model(job)
    longest = cast("type[RetrievalModel]", model_class).longest_of(config)
    training = _training(job, prepared, verify=False)
    events_N = np.bincount(training.item_E, minlength=training.num_items)
    settings: dict[str, Any] = {
        "events_N": events_N,
        "batch_size": reading.batch_size,
        "device": device,
        "longest": longest,
    }
    if log.basket is not None:
        baskets = load_baskets(
            prepared,
            split,
            verify=reading.verify,
            shown=log.shown,
            given=log.hidden is not None,
        )
        return ask_baskets(
            baskets.whole, baskets.hidden_E, masks=log.mask_seen is not False, **settings
        )
    before: dict[SplitName, Interactions] = {"train": training}
    if split == "test":
        before["valid"] = load_interactions(prepared, "valid", verify=False)
    return ask_users(
        load_interactions(prepared, split, verify=reading.verify),
        list(before.values()),
        masked=[before[each] for each in masked_splits(log, split)],
        **settings,
    )


def masked_splits(log: InteractionLog, split: SplitName) -> list[SplitName]:
    """Return the splits whose items are not answered to the users who took them."""
    if log.mask_seen is True and split == "test" and log.basket is None:
        return ["train", "valid"]
    return ["train"] if log.mask_seen else []


def measure_split(
    scoring: Scoring,
    batches: Examples,
    split: SplitName,  # noqa: ARG001
) -> Mapping[str, float]:
    """Return the metrics of a split."""
    of_split = cast("Asked", batches)
    ranked = _ranked(scoring, of_split)
    return measure(ranked, _cutoffs(scoring.job), of_split.events_N).values


def evaluate_splits(
    scoring: Scoring, splits: Sequence[SplitName], common: Mapping[str, Any]
) -> Evaluation:
    """Measure splits, and what they say of popularity, parts of the users, and single ones."""
    job, prepared = scoring.job, scoring.prepared
    log = _log(job)
    summaries: dict[str, RetrievalSplit] = {}
    for split in splits:
        reading = Reading(job.train.batch_size)
        of_split = asked(job, prepared, split, reading, scoring.placement.device)
        ranked = _ranked(scoring, of_split)
        summaries[split] = summarise_ranking(
            ranked,
            _catalogue(log, prepared.schema, of_split, ranked),
            _cutoffs(job),
            rows=len(of_split.relevant),
            users_without_items=of_split.left_out,
            masked=masked_splits(log, split),
        )
    return RetrievalEvaluation(**common, splits=summaries)


def _ranked(scoring: Scoring, of_split: Asked) -> Ranked:
    return rank(
        cast("VectorModel | ScoreModel", scoring.placement.network.model),
        of_split.epoch(0),
        relevant=of_split.relevant,
        seen=of_split.seen,
        k=max(_cutoffs(scoring.job)),
        device=scoring.placement.device,
    )


def _catalogue(log: InteractionLog, schema: Schema, of_split: Asked, ranked: Ranked) -> Catalogue:
    items = row_keys(schema.columns[-1])

    def user_name(row: int) -> str:
        query = int(ranked.query_Q[row])
        if log.basket is not None:
            return f"basket {query + 1}"
        return str(row_keys(schema.columns[0])[int(of_split.user_Q[query]) - FIRST_CODE])

    return Catalogue(
        events_N=of_split.events_N,
        known_Q=np.diff(of_split.history.starts_U)[ranked.query_Q],
        history=lambda row: of_split.history.of(int(ranked.query_Q[row])).tolist(),
        user_name=user_name,
        item_name=lambda item: str(items[item - FIRST_CODE]),
    )


def _cutoffs(job: Job) -> list[int]:
    """Return the k that are measured: those of the job, and those that decide in training."""
    monitor = RETRIEVAL.monitor_of(job)
    decides = (int(part.partition("@")[2]) for part in monitor.split("-"))
    return sorted({*_log(job).top_k, *decides})


def _training(job: Job, prepared: Prepared, *, verify: bool) -> Interactions:
    log = _log(job)
    if log.basket is None:
        return load_interactions(prepared, "train", verify=verify)
    return load_baskets(prepared, "train", verify=verify, shown=log.shown, given=False).whole


def _log(job: Job) -> InteractionLog:
    assert job.interactions is not None, "a rule refuses a retrieval model without a log"
    return job.interactions


def _longest(items: int | None) -> int:
    assert items is not None, "a model of ordered histories says how many items it reads"
    return items


def non_finite(
    network: Network,
    batch: object,  # noqa: ARG001
    schema: Schema,  # noqa: ARG001
    *,
    step: int,
    epoch: int,
    world_size: int = 1,  # noqa: ARG001
) -> TrainingError:
    """Return the error for a loss that is not finite: what diverged, and the remedy."""
    where = f"epoch {epoch}, step {step}: the loss is not finite"
    return diverged_weights(network, where) or TrainingError(
        f"{where}. Every weight is finite, so the sums overflowed. Lower train.dense.lr."
    )


def facts(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a report says of the log."""
    log = job["interactions"]
    asker = "basket" if "basket" in log else "user"
    masks = {True: "the query's own items are no answer", False: "nothing is masked"}
    masked = masks.get(log["mask_seen"], "the query's items in training are no answer")
    return [("log", f"{log[asker]} with {log['item']}"), ("answers", masked)]


def panels(evaluation: Evaluation, run: Path) -> Iterable[Panel]:  # noqa: ARG001
    """Yield the sections of a retrieval model's report."""
    # Training has no use for the libraries of pictures and graphs, which take 80 MB.
    from headwater.pipelines.reporting.retrieval_panels import retrieval_panels

    return retrieval_panels(cast("RetrievalEvaluation", evaluation))


def release(trained: Trained, manifest: Manifest, folder: Path) -> Manifest:
    """Write the files of a retriever, as `Family.release` says."""
    from headwater.pipelines.release.retriever import write_retriever

    return write_retriever(trained, manifest, folder)


RETRIEVAL = Family(
    name="retrieval",
    metrics=METRICS,
    monitor=MONITOR,
    headline=(MONITOR, "recall@20"),
    problems=problems,
    network=network,
    least_rows=lambda job, prepared: 1,  # noqa: ARG005
    examples=examples,
    measure=measure_split,
    non_finite=non_finite,
    evaluate=evaluate_splits,
    evaluation=RetrievalEvaluation,
    facts=facts,
    panels=panels,
    release=release,
)
