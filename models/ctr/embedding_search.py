"""The phases of OptEmbed: a supernet, an evolutionary search by it, and training of what was found.

B examples, F features, D dimension of the search, C candidates.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import torch
from torch import Tensor, nn

from headwater.feature_store.errors import JobError
from headwater.models.batch import Batch
from headwater.models.ctr.evolution import Breeding, Candidate, Evolution, Space
from headwater.models.ctr.optembed_config import MAIN, OptEmbedConfig
from headwater.models.ctr.pruned_weights import (
    compact_weights,
    features_of,
    first_weights,
    load_chosen,
    main_layout,
    search_space,
)
from headwater.models.ctr.pruning import (
    FILES,
    Architecture,
    Chosen,
    Kept,
    Weights,
    folder_of,
    read_chosen,
)
from headwater.models.network import Network
from headwater.models.phases import Stage
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.strategy import Check, OneLoss, StepLoss, Strategy
from headwater.models.tables.dense import DenseTables, MergedTable
from headwater.models.tables.embeddings import Mode
from headwater.models.tables.layout import LANE

SUPERNET, EVOLVE = "supernet", "evolve"
"""Names of the phases before the last."""
FIRST = "first.pt"
"""File of the weights from which the supernet starts."""
CANDIDATES = "candidates.json"
"""File of all that the search evaluated."""
FINALISTS = 5
"""Best candidates that are measured again with batch statistics of their own."""
RECALIBRATING_BATCHES = 20


class Supernet(Strategy[Batch]):
    """One pass with a dimension drawn for each example and feature; rows count by learned thresholds."""

    modes: ClassVar[tuple[Mode, ...]] = ("dense",)

    def __init__(
        self, placement: Placement, settings: LearnSettings, *, config: OptEmbedConfig, steps: int
    ) -> None:
        """Make the optimisers; `steps` are those of the whole supernet."""
        search, most = config.search, config.base.embedding_dim
        table = main_table(placement.network)
        thresholds = [] if table is None else [table.add_thresholds(search.norm).threshold_F]
        settings = replace(settings, sparse_lr=search.lr, sparse_l2=search.penalty(steps))
        super().__init__(placement, settings, apart=thresholds)
        self.alpha = search.alpha
        self.thresholds = thresholds
        # Without momentum it has no state to save.
        rate = search.threshold_rate(steps)
        self.sgd = torch.optim.SGD(thresholds, lr=rate) if thresholds else None
        self.dims = torch.tensor(search.dims(most), device=placement.device)
        self.most = most

    def step(self, batch: Batch, num_rows: int, check: Check) -> StepLoss:
        """Train on one batch."""
        network = self.placement.network
        self.optimisers.zero_grad()
        if self.sgd is not None:
            self.sgd.zero_grad()
        with torch.autocast(
            self.placement.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bfloat16",
        ):
            looked = network.embeddings(batch)
            emb_BFD = looked.embeddings[MAIN]
            masked = {MAIN: emb_BFD * prefix(self.draw(*emb_BFD.shape[:2]), self.most)}
            output = network.model(**{**looked.embeddings, **masked})
        mean = network.model.loss(output, batch) / num_rows
        total = mean + self.optimisers.penalty(looked)
        for threshold_F in self.thresholds:
            total = total + self.alpha * torch.exp(-threshold_F).sum()
        check(total.detach())
        total.backward()
        self.optimisers.step(looked)
        if self.sgd is not None:
            self.sgd.step()
        return StepLoss(mean.detach())

    def draw(self, num_rows: int, num_features: int) -> Tensor:
        """Return a dimension for each example and feature, uniform, (B, F).

        It comes from the global generator, whose state a checkpoint holds, as that of dropout.
        """
        return self.dims[
            torch.randint(len(self.dims), (num_rows, num_features), device=self.dims.device)
        ]


def prefix(dims: Tensor, most: int) -> Tensor:
    """Return 1 for the first coordinates of each feature, as many as its dimension, else 0: (.., D)."""
    return (torch.arange(most, device=dims.device) < dims.unsqueeze(-1)).float()


def main_table(network: Network) -> MergedTable | None:
    """Return the main tables of a dense network; None where all features are numbers."""
    store = network.embeddings.store
    return store.merged().get(MAIN) if isinstance(store, DenseTables) else None


@dataclass(frozen=True, slots=True)
class TrainSupernet:
    """Train the supernet, and keep the weights from which it starts."""

    name: str = SUPERNET
    strategies: tuple[type[Strategy[Any]], ...] = (Supernet,)
    mode: Mode | None = "dense"

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        config = cast("OptEmbedConfig", stage.config)
        multiple = config.search.dim_multiple
        if stage.mode == "fused" and multiple % LANE:
            raise JobError(
                f"model.search.dim_multiple: found {multiple}, but the fused tables that train what is found "
                f"want dimensions that are multiples of {LANE}. Set it to {LANE}, or "
                "train.sparse.mode = 'lazy'."
            )
        placement = stage.build(config, self.mode)
        search_space(placement.network.embeddings, config, None)
        if not (stage.folder / FIRST).is_file():
            weights = io.BytesIO()
            torch.save(first_weights(placement.network), weights)
            stage.write(FIRST, weights.getvalue())
        steps = config.search.epochs * stage.steps()
        strategy = Supernet(placement, stage.learn, config=config, steps=steps)
        stage.descend(placement, strategy, keep="last", epochs=config.search.epochs)


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was evaluated."""

    dimensions: Candidate
    """In the order of the features."""
    bytes: int
    """Of the embedding tables and remaps that it would have."""
    auc: float
    fitness: float
    """What `train.monitor` says of it, to be maximised."""


class Evaluations(msgspec.Struct, kw_only=True):
    """All candidates that were evaluated, in their order."""

    features: list[str]
    generations: int = 0
    """Generations that are done."""
    candidates: list[Evaluated] = []


@dataclass(frozen=True, slots=True)
class Evolve:
    """Search for the dimensions by the supernet, and write the architecture."""

    name: str = EVOLVE
    strategies: tuple[type[Strategy[Any]], ...] = ()
    mode: Mode | None = "dense"

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        config = cast("OptEmbedConfig", stage.config)
        placement = stage.build(config, self.mode)
        network = placement.network
        table = main_table(network)
        if table is not None:
            table.add_thresholds(config.search.norm)
        stage.load(placement, SUPERNET)
        kept: Kept = {}
        if table is not None:
            kept = {name: kept_N.cpu().numpy() for name, kept_N in table.prune().items()}
        network.eval()
        space = search_space(network.embeddings, config, kept)
        evolution, evaluated = self._evolve(stage, network, space)
        candidate = evolution.best(1)[0]
        auc = next(each.auc for each in evaluated.candidates if each.dimensions == candidate)
        if any(isinstance(layer, nn.BatchNorm1d) for layer in network.model.modules()):
            candidate, auc = _best_finalist(stage, network, evolution.best(FINALISTS))
        features = features_of(network.embeddings, candidate, kept)
        found = Architecture(
            base=config.base.type,
            embedding_dim=config.base.embedding_dim,
            auc=auc,
            bytes=space.num_bytes(candidate),
            features=features,
        )
        first: Weights = torch.load(stage.earlier(SUPERNET) / FIRST, weights_only=True)
        weights = compact_weights(first, config.with_features(features), kept, list(features))
        files = Chosen(found, kept, weights).files()
        for name in FILES:
            stage.write(name, files[name])
        stage.note(_summary(found))

    def _evolve(
        self, stage: Stage, network: Network, space: Space
    ) -> tuple[Evolution, Evaluations]:
        """Evaluate all generations, from where a search before was stopped."""
        config = cast("OptEmbedConfig", stage.config)
        search, path = config.search, stage.folder / CANDIDATES
        columns = [column.name for column in main_layout(network.embeddings).columns]
        done = Evaluations(features=columns)
        if path.is_file():
            done = msgspec.json.decode(path.read_bytes(), type=Evaluations)
        breeding = Breeding(
            search.parents, search.mutations, search.crossovers, search.mutation_rate
        )
        fitness = {each.dimensions: each.fitness for each in done.candidates}
        evolution = Evolution(space, breeding, stage.seed, fitness, done.generations)
        total = search.generations * (search.mutations + search.crossovers)
        with stage.progress("search for dimensions", total, "candidates") as bar:
            bar.advance(len(done.candidates))
            while evolution.generation < search.generations:
                candidates = evolution.next_generation()
                if not candidates:
                    break
                model = network.model
                values = stage.evaluate(scorer(network, [(model, each) for each in candidates]))
                new = [
                    Evaluated(
                        dimensions=each,
                        bytes=space.num_bytes(each),
                        auc=found["auc"],
                        fitness=stage.monitored(found),
                    )
                    for each, found in zip(candidates, values, strict=True)
                ]
                evolution.tell({each.dimensions: each.fitness for each in new})
                done.candidates += new
                done.generations = evolution.generation
                content = msgspec.json.format(msgspec.json.encode(done), indent=1)
                stage.write(CANDIDATES, content)
                bar.advance(len(new))
        return evolution, done


def scorer(
    network: Network, candidates: Sequence[tuple[nn.Module, Candidate]]
) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to the logits of candidates, each by a model of its own, (C, B)."""
    dims_CF = torch.tensor([dims for _, dims in candidates])
    masks_CFD = prefix(dims_CF, main_layout(network.embeddings).dim)

    def score(batch: Batch) -> Tensor:
        looked = network.embeddings(batch).embeddings
        masks = masks_CFD.to(looked[MAIN].device)
        return torch.stack(
            [
                model(**{**looked, MAIN: looked[MAIN] * mask_FD})
                for (model, _), mask_FD in zip(candidates, masks, strict=True)
            ]
        )

    return score


def _best_finalist(
    stage: Stage, network: Network, finalists: Sequence[Candidate]
) -> tuple[Candidate, float]:
    """Return the best of the finalists, and its AUC, each with batch statistics of its own coordinates.

    Those of the supernet are of coordinates drawn at random.
    """
    # One row has no variance.
    batches = [
        batch for batch in islice(stage.batches("train"), RECALIBRATING_BATCHES) if len(batch) > 1
    ]
    models = [recalibrated(network, each, batches) for each in finalists]
    values = stage.evaluate(scorer(network, list(zip(models, finalists, strict=True))))
    best = max(range(len(finalists)), key=lambda i: stage.monitored(values[i]))
    return finalists[best], values[best]["auc"]


@torch.no_grad()
def recalibrated(network: Network, candidate: Candidate, batches: Iterable[Batch]) -> nn.Module:
    """Return a copy of the model whose batch statistics are the means over batches of a candidate."""
    model = copy.deepcopy(network.model).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    score = scorer(network, [(model, candidate)])
    for batch in batches:
        score(batch)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Retrain:
    """Train what the search found, from the weights that the supernet started from."""

    name: str = "train"
    strategies: tuple[type[Strategy[Any]], ...] = (OneLoss,)
    mode: Mode | None = None

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        config = cast("OptEmbedConfig", stage.config)
        path = config.architecture
        source = stage.earlier(EVOLVE) if path is None else folder_of(Path(path))
        # Once the run has its own copy, it goes on without the source.
        chosen = read_chosen(source if source.is_dir() else stage.folder)
        if source.is_dir():
            for name in FILES:
                stage.write(name, (source / name).read_bytes())
        config = config.with_features(chosen.architecture.features)
        placement = stage.build(config)
        load_chosen(placement.network, config, chosen)
        stage.descend(placement, OneLoss(placement, stage.learn), keep="best")


def _summary(found: Architecture) -> str:
    dims = [feature.dimension for feature in found.features.values()]
    kept = sum(feature.kept or 0 for feature in found.features.values())
    rows = sum(feature.rows or 0 for feature in found.features.values())
    return (
        f"kept {kept:,} of {rows:,} rows; dimensions {min(dims)} to {max(dims)} of {found.embedding_dim}; "
        f"{found.bytes:,} bytes; AUC {found.auc:.5f} by the weights of the search"
    )
