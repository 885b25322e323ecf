"""The search of OptInter: a relaxed model whose architecture weights learn on rows held out from the others.

Taught by the same rows as everything else, as published, the weights favour memorising: a table that repeats
single training rows lowers the training loss whether or not it says anything of other rows.

B rows, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import FIRST_CODE
from headwater.models.batch import Batch
from headwater.models.ctr.architecture import (
    ARCHITECTURE,
    METHODS,
    FoundPair,
    Method,
    architecture_file,
    read_architecture,
)
from headwater.models.ctr.optinter_config import OptInterConfig
from headwater.models.phases import Descend, Stage
from headwater.models.placement.optimisers import start_adam
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.placement.state import copy_over
from headwater.models.seeds import derive_seed
from headwater.models.strategy import Check, OneLoss, StepLoss, Strategy
from headwater.models.tables.embeddings import Mode

ANNEALED = 0.8
"""Share of the steps over which the temperature falls."""
EPS = 1e-4
"""Of Adam for the architecture weights: below it steps fade with the gradient. While tables are near zero the
gradients are noise, which steps of full size would turn into choices."""
LEAST_FREQUENT = 0.01
"""Share of the training rows that frequent values of a crossed column must have to be memorised. With less
nearly all rows read the one row of rare values: a method of no effect, which chance alone would choose."""
_FLOAT_BYTES = 4


class Relaxed(Protocol):
    """Part of a model in which each pair is a mixture of the methods."""

    config: OptInterConfig
    architecture_P3: nn.Parameter
    """Weights of the methods, before the softmax."""
    temperature: Tensor
    noise_P3: Tensor
    barred_P3: Tensor
    """0, or minus infinity for a method that a pair cannot have."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch, summed."""
        ...


class InteractionSearch(Strategy[Batch]):
    """One update of the architecture weights on held-out rows, and one of all others on the rest."""

    modes: ClassVar[tuple[Mode, ...]] = ("dense",)
    reads_numbers: ClassVar[bool] = True

    def __init__(
        self, placement: Placement, settings: LearnSettings, *, seed: int, steps: int
    ) -> None:
        """Make the optimisers; `steps` are those of the whole search."""
        self.model = cast("Relaxed", placement.network.model)
        super().__init__(placement, settings, apart=[self.model.architecture_P3])
        self.search = self.model.config.search
        self.seed = seed
        self.steps = steps
        self.done = torch.zeros((), dtype=torch.int64)
        """Steps that are done."""
        self.adam = torch.optim.Adam(
            [self.model.architecture_P3], lr=self.search.architecture_lr, eps=EPS
        )
        start_adam(self.adam)

    def step(self, batch: Batch, num_rows: int, check: Check) -> StepLoss:  # noqa: ARG002
        """Train on one batch."""
        self.anneal()
        self.optimisers.zero_grad()
        self.adam.zero_grad()
        if self.search.architecture_rows == "training":
            mean = self._descend(batch, check)
        else:
            held_B = held_out(batch, self.search.held_out, self.seed)
            if held_B.any():
                self._mean_loss(_rows(batch, held_B), check).backward(
                    inputs=[self.model.architecture_P3]
                )
            mean = self._descend(_rows(batch, ~held_B), check, apart=True)
        if self.model.architecture_P3.grad is not None:
            self.adam.step()
        self.done += 1
        return StepLoss(mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimisers, and the progress of the search."""
        return {**super().state_dict(), "search": self._own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict({key: value for key, value in state.items() if key != "search"})
        with torch.no_grad():
            copy_over(self._own_state(), state["search"], "search")

    def _own_state(self) -> dict[str, Any]:
        return {"done": self.done, "adam": self.adam.state[self.model.architecture_P3]}

    def _descend(self, batch: Batch, check: Check, *, apart: bool = False) -> Tensor:
        """Update all weights but those of the architecture, and return the mean loss.

        Unless these are kept apart, they get their gradient too.
        """
        if not len(batch):
            return torch.zeros(())
        self.model.architecture_P3.requires_grad_(not apart)
        output, looked = self.placement.module(batch)
        self.model.architecture_P3.requires_grad_(True)
        mean = self.model.loss(output, batch) / len(batch)
        total = mean + self.optimisers.penalty(looked)
        check(total.detach())
        total.backward()
        self.optimisers.step(looked)
        return mean.detach()

    def _mean_loss(self, batch: Batch, check: Check) -> Tensor:
        output, _ = self.placement.module(batch)
        mean = self.model.loss(output, batch) / len(batch)
        check(mean.detach())
        return mean

    def anneal(self) -> None:
        """Set temperature and noise for the next step."""
        done = int(self.done)
        self.model.temperature.fill_(temperature(done, self.steps, self.search.last_temperature))
        if self.search.relaxation != "softmax":
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "gumbel", str(done)))
            uniform_P3 = torch.rand(self.model.noise_P3.shape, generator=generator)
            self.model.noise_P3.copy_(-torch.log(-torch.log(uniform_P3.clamp_(1e-20, 1 - 1e-7))))


def temperature(done: int, steps: int, last: float) -> float:
    """Return the temperature after some steps: from 1 in a line to `last` at 80 % of all steps."""
    return max(last, 1 - (1 - last) * done / max(ANNEALED * steps, 1))


def held_out(batch: Batch, share: float, seed: int) -> Tensor:
    """Return which rows are held out, (B,): about `share` of them, the same in every epoch."""
    assert batch.row_B is not None, "the strategy asks for the numbers of rows"
    # Of splitmix64, whose constants pass for int64 with a wrap.
    mixed_B = (batch.row_B + derive_seed(seed, "held-out")) * -0x61C8864680B583EB
    mixed_B = (mixed_B ^ (mixed_B >> 30)) * -0x40A7B892E31B1A47
    return (mixed_B >> 33) % (1 << 20) < int(share * (1 << 20))


def _rows(batch: Batch, chosen_B: Tensor) -> Batch:
    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[chosen_B]

    return replace(
        batch,
        codes_BW=batch.codes_BW[chosen_B],
        dense_BD=batch.dense_BD[chosen_B],
        label_B=batch.label_B[chosen_B],
        weight_B=of(batch.weight_B),
        group_B=of(batch.group_B),
        row_B=of(batch.row_B),
    )


@dataclass(frozen=True, slots=True)
class Search:
    """Search for the method of each pair; leaves `architecture.toml` in the folder of the phase."""

    name: str = "search"
    strategies: tuple[type[Strategy[Any]], ...] = (InteractionSearch,)
    mode: Mode | None = "dense"

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        config = cast("OptInterConfig", stage.config)
        search = config.search
        placement = stage.build(config, self.mode)
        sizes = Sizes.of(placement, config)
        if config.max_bytes is not None and sizes.main > config.max_bytes:
            raise JobError(
                f"model.max_bytes: found {config.max_bytes:,}, but the main table, which every architecture "
                f"has, takes {sizes.main:,}. Raise it, lower model.embedding_dim, or raise min_count of the "
                "features."
            )
        settings = replace(
            stage.learn,
            sparse_lr=search.lr,
            dense_lr=search.lr,
            sparse_l2=search.l2,
            dense_l2=0.0,
        )
        counts = _counts(stage, placement)
        bare = [frequent_share(counts[pair.name]) < LEAST_FREQUENT for pair in config.pairs]
        cast("Relaxed", placement.network.model).barred_P3[bare, 0] = -math.inf
        strategy = InteractionSearch(
            placement, settings, seed=stage.seed, steps=search.epochs * stage.steps()
        )
        stage.descend(placement, strategy, keep="last", epochs=search.epochs)
        weights_P3 = (strategy.model.architecture_P3 + strategy.model.barred_P3).detach().double()
        methods = choose(weights_P3.cpu(), sizes, config)
        found = [
            FoundPair(
                columns=pair.columns,
                method=method,
                strength=tuple(strength),
                rows=sizes.rows[pair.name],
                information=mutual_information(counts[pair.name]),
            )
            for pair, method, strength in zip(
                config.pairs, methods, torch.softmax(weights_P3, 1).tolist(), strict=True
            )
        ]
        stage.write(ARCHITECTURE, architecture_file(found))
        counts = ", ".join(f"{methods.count(method)} {method}" for method in METHODS)
        stage.note(f"of {len(found)} pairs: {counts}")


@dataclass(frozen=True, slots=True)
class Retrain:
    """Train the architecture of the search from new weights."""

    name: str = "train"
    strategies: tuple[type[Strategy[Any]], ...] = (OneLoss,)
    mode: Mode | None = None

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        source = stage.earlier("search") / ARCHITECTURE
        stage.write(ARCHITECTURE, source.read_bytes())
        chosen = tuple(pair.chosen for pair in read_architecture(source))
        Descend(OneLoss).train(stage, stage.config.model_copy(update={"architecture": chosen}))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of embeddings, float32."""

    main: int
    """Of the main slot."""
    second: Mapping[str, int]
    """Of each column's table in the second slot."""
    crossed: Mapping[str, int]
    """Of each pair's table."""
    rows: Mapping[str, int]
    """Rows of each pair's table."""

    @classmethod
    def of(cls, placement: Placement, config: OptInterConfig) -> Sizes:
        """Return the sizes of a search."""
        layouts = {layout.name: layout for layout in placement.network.embeddings.layouts}
        rows = {
            name: {column.name: column.cardinality for column in layout.tables}
            for name, layout in layouts.items()
        }
        width = _FLOAT_BYTES * config.interaction_dim
        main = sum(rows["emb_BFD"].values()) + len(layouts["emb_BFD"].dense)
        return cls(
            main * _FLOAT_BYTES * config.embedding_dim,
            {name: width * count for name, count in rows["second_BGI"].items()},
            {name: width * count for name, count in rows["crossed_BMI"].items()},
            rows["crossed_BMI"],
        )

    def total(self, config: OptInterConfig, methods: Sequence[Method]) -> int:
        """Return the bytes of an architecture."""
        chosen = list(zip(config.pairs, methods, strict=True))
        used = {
            column for pair, method in chosen if method == "factorise" for column in pair.columns
        }
        crossed = sum(self.crossed[pair.name] for pair, method in chosen if method == "memorise")
        return self.main + sum(self.second[column] for column in used) + crossed


def choose(weights_P3: Tensor, sizes: Sizes, config: OptInterConfig) -> list[Method]:
    """Return the strongest method of each pair, within `max_bytes`.

    Memorised pairs are given up for their second choice, those of the least margin per byte first; where
    that is not enough, factorised ones for none.
    """
    methods: list[Method] = [METHODS[place] for place in weights_P3.argmax(1).tolist()]
    if config.max_bytes is None:
        return methods
    values = weights_P3.numpy()
    for method, others in (("memorise", (1, 2)), ("factorise", (2,))):
        own = METHODS.index(method)
        best: NDArray[np.int64] = np.array(others)[values[:, others].argmax(1)]
        margins = values[:, own] - values[np.arange(len(values)), best]
        bytes_P = [sizes.crossed[pair.name] if method == "memorise" else 1 for pair in config.pairs]
        order = np.argsort(margins / np.array(bytes_P), kind="stable")
        for place in (each for each in order.tolist() if methods[each] == method):
            if sizes.total(config, methods) <= config.max_bytes:
                return methods
            methods[place] = METHODS[best[place]]
    return methods


def _counts(stage: Stage, placement: Placement) -> dict[str, NDArray[np.int64]]:
    """Return for each crossed column its negative and positive training rows by code, (cardinality, 2)."""
    layouts = placement.network.embeddings.layouts
    crossed = next(layout for layout in layouts if layout.name == "crossed_BMI")
    places = torch.tensor([place.start for place in crossed.places])
    rows = [column.cardinality for column in crossed.tables]
    starts_P = torch.tensor([0, *rows[:-1]]).cumsum(0)
    counts_N2 = torch.zeros(sum(rows), 2, dtype=torch.int64)
    for batch in stage.batches("train"):
        cells_BP = batch.codes_BW.cpu().index_select(1, places) + starts_P
        positive_B = batch.label_B.cpu() > 0
        for side, chosen_B in enumerate((~positive_B, positive_B)):
            counts_N2[:, side] += torch.bincount(
                cells_BP[chosen_B].view(-1), minlength=len(counts_N2)
            )
    return {
        column.name: part_N2.numpy()
        for column, part_N2 in zip(crossed.tables, counts_N2.split(rows), strict=True)
    }


def frequent_share(counts_N2: NDArray[np.int64]) -> float:
    """Return the share of rows whose code is neither that of missing nor that of rare values."""
    return float(counts_N2[FIRST_CODE:].sum() / max(counts_N2.sum(), 1))


def mutual_information(counts_N2: NDArray[np.int64]) -> float:
    """Return the mutual information of the two axes of a table of counts, in nats.

    Of a crossed column it is a lower bound: values that share a row of the table count as one.
    """
    total = counts_N2.sum()
    joint = counts_N2 / total
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())
    return max(0.0, information) if math.isfinite(information) else 0.0
