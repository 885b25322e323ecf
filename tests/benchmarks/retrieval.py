"""Quality of retrieval models on two public data sets; prints Markdown tables.

beauty        MCLRec, CL4SRec and SASRec on Amazon Beauty (5-core, leave-one-out, the whole catalogue, nothing
              masked), with MCLRec's settings on it: --data is the folder of sequences.parquet.
amazon-book   DCCF with its published settings on RLMRec's split of Amazon-book (training items masked), its
              views left out one by one, and six baselines with six trials each: --data is the folder of
              train.parquet, valid.parquet and test.parquet.
both          The trainings of both, the short ones first, then all tables.

Trainings whose result is in `--work` are not run again, and one that was stopped goes on from its
checkpoint: a series can be stopped and started at any time. `--epochs 1` shows what an epoch costs; give it
a `--work` of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cyclopts import App
from measure import table
from retrieval_runs import Workshop, write_events

app = App(help=__doc__)

SEEDS = (1, 2, 3)
Model = dict[str, Any]
Record = dict[str, Any]

# Published codes do not clip, keep their learning rate, and count any gain.
PUBLISHED = {"clip_norm": 1e9, "lr_factor": 1.0, "min_delta": 0.0, "device": "cpu"}

BEAUTY: dict[str, Model] = {
    "sasrec": {"type": "sasrec"},
    "sasrec-prefixes": {"type": "sasrec", "way": "prefixes"},
    "cl4srec": {"type": "cl4srec"},
    "mclrec-no-second-contrast": {"type": "mclrec", "second_contrast": 0.0},
    "mclrec-joint": {"type": "mclrec", "joint": True},
    "mclrec": {"type": "mclrec"},
}
"""Defaults are those of MCLRec's published code on this data set: lambda 0, beta 0.05, dropout 0.5."""
BEAUTY_METRICS = ("hit_rate@5", "hit_rate@10", "hit_rate@20", "ndcg@5", "ndcg@10", "ndcg@20")
BEAUTY_PUBLISHED = {
    "MCLRec, published": (0.0581, 0.0871, 0.1243, 0.0352, 0.0446, 0.0539),
    "MCLRec without the second contrast, published": ("", "", 0.1056, "", "", 0.0394),
    "CL4SRec, published there": (0.0401, 0.0642, 0.0974, 0.0268, 0.0345, 0.0428),
    "SASRec, published there": (0.0377, 0.0624, 0.0894, 0.0241, 0.0342, 0.0386),
}
PREFIX_BATCH = 256
USER_BATCH = 44
"""Users in a step of the causal way: as many items to foretell as 256 prefixes, 5.9 a user."""

SOLVED: dict[str, list[Model]] = {
    "popularity": [{"type": "popularity"}],
    "item_knn": [
        {"type": "item_knn", "num_neighbours": neighbours, "user_weight": weight}
        for weight in ("uniform", "idf")
        for neighbours in (50, 100, 200)
    ],
    "rp3beta": [
        {"type": "rp3beta", "alpha": alpha, "beta": beta}
        for alpha in (0.5, 0.7)
        for beta in (0.0, 0.1, 0.2)
    ],
    "ease": [{"type": "ease", "l2": l2} for l2 in (10.0, 30.0, 100.0, 200.0, 400.0, 1000.0)],
}
RATES = (1e-3, 5e-3)
LEARNED: dict[str, list[Model]] = {
    "bpr_mf": [{"type": "bpr_mf", "embedding_dim": 32, "l2": l2} for l2 in (1e-4, 1e-3, 1e-2)],
    "lightgcn": [{"type": "lightgcn", "embedding_dim": 32, "l2": l2} for l2 in (1e-5, 1e-4, 1e-3)],
}
"""Each with both rates makes six trials; the dimension is DCCF's."""
DCCF: Model = {
    "type": "dccf",
    "preset": "sslrec",
    "contrast_weight": 1e-3,
    "temperature": 0.1,
    # RLMRec, whose row is published, takes the drawn items out of the contrast.
    "contrast_items": "positives",
}
VIEWS = ("intent_view", "graph_adaptive_view", "intent_adaptive_view")
BOOK_METRICS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")
BOOK_PUBLISHED = {
    "DCCF, published": (0.0662, 0.1019, 0.1517, 0.0658, 0.0780, 0.0943),
    "LightGCN, published there": (0.0570, 0.0915, 0.1411, 0.0574, 0.0694, 0.0856),
}
BOOK_PATIENCE = 15
"""The published code looks at validation rows after every third epoch, and stops after five without gain."""


@dataclass(frozen=True, slots=True)
class Beauty:
    """Trainings on Amazon Beauty."""

    shop: Workshop
    data: Path

    def run(self, name: str, seed: int = 1) -> Record:
        """Return the evaluation of a training."""
        return self.shop.tested(f"beauty-{name}-s{seed}", self.job(name, seed))

    def job(self, name: str, seed: int) -> dict[str, Any]:
        """Return the job of a model."""
        events = self.shop.work.resolve() / "data" / "beauty.parquet"
        write_events(self.data / "sequences.parquet", events)
        model = BEAUTY[name]
        causal = model["type"] == "sasrec" and "way" not in model
        return {
            "data": {
                "source": str(events),
                "split": {"by": "leave-one-out", "user": "user", "time": "time"},
            },
            "interactions": {
                "user": "user",
                "item": "item",
                "time": "time",
                "mask_seen": False,
                "top_k": [5, 10, 20],
            },
            "model": model,
            "train": {
                **PUBLISHED,
                "batch_size": USER_BATCH if causal else PREFIX_BATCH,
                "epochs": 100,
                "monitor": "mrr@10",
                "patience": 10,
                "seed": seed,
            },
        }

    def seeds(self, name: str) -> tuple[int, ...]:
        """Return the seeds of a model."""
        return SEEDS if name == "sasrec" else SEEDS[:1]

    def report(self) -> None:
        """Print what all models reach on the test rows."""
        rows: list[list[object]] = []
        for name in BEAUTY:
            found = [self.run(name, seed) for seed in self.seeds(name)]
            rows.append(_row(name, found, BEAUTY_METRICS, "test"))
        for label, values in BEAUTY_PUBLISHED.items():
            rows.append([label, *values])
        print("\nAmazon Beauty\n\n" + table(["", *BEAUTY_METRICS], rows), flush=True)


@dataclass(frozen=True, slots=True)
class Book:
    """Trainings on Amazon-book."""

    shop: Workshop
    data: Path

    def job(self, model: Model, lr: float, seed: int) -> dict[str, Any]:
        """Return the job of a model."""
        return {
            "data": {
                "root": str(self.data.resolve()),
                **{split: f"{split}.parquet" for split in ("train", "valid", "test")},
            },
            "interactions": {
                "user": "user",
                "item": "item",
                "mask_seen": "train",
                "top_k": [5, 10, 20],
            },
            "model": model,
            "train": {
                **PUBLISHED,
                "batch_size": 4096,
                "epochs": 1000,
                "monitor": "recall@20",
                "patience": BOOK_PATIENCE,
                "dense": {"lr": lr},
                "seed": seed,
            },
        }

    def solved(self, name: str) -> tuple[Model, list[Record]]:
        """Return the best settings of a model that is solved, and its figures on test rows.

        Such a model answers from a history. That of a test query holds the validation items too, which no
        model of the published table knew; so the test rows take the place of validation rows.
        """
        model = self.best(
            {f"{index}": (each, 1e-3) for index, each in enumerate(SOLVED[name])}, name
        )[0]
        job = self.job(model, 1e-3, 1)
        job["data"] = {**job["data"], "valid": "test.parquet"}
        del job["data"]["test"]
        return model, [{"test": self.shop.tested(f"book-{name}-test", job)["valid"]}]

    def learned(self, name: str) -> tuple[Model, list[Record]]:
        """Return the best settings of a model that is trained, and its figures of three seeds."""
        trials = {
            f"{index}-lr{lr:g}": (each, lr)
            for index, each in enumerate(LEARNED[name])
            for lr in RATES
        }
        model, lr, best = self.best(trials, name)
        found = [self.shop.tested(f"book-{name}-{best}-s1", self.job(model, lr, 1))]
        found += [
            self.shop.tested(f"book-{name}-{best}-s{seed}", self.job(model, lr, seed))
            for seed in SEEDS[1:]
        ]
        return {**model, "lr": lr}, found

    def best(
        self, trials: Mapping[str, tuple[Model, float]], name: str
    ) -> tuple[Model, float, str]:
        """Return the settings of the trial that is best on validation rows, with its label."""
        reached = {
            label: self.shop.trained(f"book-{name}-{label}-s1", self.job(model, lr, 1))["best"]
            for label, (model, lr) in trials.items()
        }
        best = max(reached, key=reached.__getitem__)
        return (*trials[best], best)

    def dccf(self, seed: int, without: str | None = None) -> Record:
        """Return the figures of DCCF, as published or without one view."""
        model = DCCF if without is None else {**DCCF, without: False}
        name = "book-dccf" if without is None else f"book-dccf-no-{without}"
        return self.shop.tested(f"{name}-s{seed}", self.job(model, 1e-3, seed))

    def report(self) -> None:
        """Print what all models reach on the test rows, of all users and of parts of them."""
        found = {name: self.solved(name) for name in SOLVED}
        found |= {name: self.learned(name) for name in LEARNED}
        found["dccf"] = (DCCF, [self.dccf(seed) for seed in SEEDS])
        rows = [_row(name, records, BOOK_METRICS, "test") for name, (_, records) in found.items()]
        rows += [
            _row(f"dccf without {view}", [self.dccf(1, view)], BOOK_METRICS, "test")
            for view in VIEWS
        ]
        for label, values in BOOK_PUBLISHED.items():
            rows.append([label, *values])
        print("\nAmazon-book, means of seeds\n\n" + table(["", *BOOK_METRICS], rows), flush=True)
        settings = [[name, str(model)] for name, (model, _) in found.items()]
        print("\n" + table(["", "settings"], settings), flush=True)
        groups = {name: _groups(records) for name, (_, records) in found.items()}
        # Known events are those of training for solved models, of validation too for the others.
        for names in dict.fromkeys(tuple(values) for values in groups.values()):
            rows = [[name, *each.values()] for name, each in groups.items() if tuple(each) == names]
            print("\n" + table(["recall@20 of users", *names], rows), flush=True)


@app.command
def beauty(*, data: Path, work: Path, epochs: int | None = None) -> None:
    """MCLRec and what it builds on, on Amazon Beauty."""
    trainings = Beauty(Workshop(work, epochs), data)
    trainings.report()


@app.command
def amazon_book(*, data: Path, work: Path, epochs: int | None = None) -> None:
    """DCCF and its rivals, on Amazon-book."""
    trainings = Book(Workshop(work, epochs), data)
    trainings.report()


@app.command
def both(*, beauty: Path, amazon_book: Path, work: Path, epochs: int | None = None) -> None:
    """Both series, one training after another: the short ones, one seed of each system, the rest."""
    shop = Workshop(work, epochs)
    sequences, book = Beauty(shop, beauty), Book(shop, amazon_book)
    for name in SOLVED:
        book.solved(name)
    sequences.run("sasrec")
    book.dccf(1)
    for name in LEARNED:
        book.learned(name)
    for seed in SEEDS[1:]:
        sequences.run("sasrec", seed)
        book.dccf(seed)
    for view in VIEWS:
        book.dccf(1, view)
    book.report()
    for name in ("sasrec-prefixes", "mclrec"):
        sequences.run(name)
    sequences.report()


def _row(name: str, found: Sequence[Record], metrics: Sequence[str], split: str) -> list[object]:
    """Return the means of metrics, with standard deviations where there are several seeds."""
    cells: list[object] = [f"{name}, {len(found)} seeds" if len(found) > 1 else name]
    for metric in metrics:
        values = [each[split]["metrics"][metric] for each in found]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.4f}{spread}")
    return cells


def _groups(found: Sequence[Record]) -> dict[str, str]:
    """Return recall@20 of each group of users by their known events, means of seeds."""
    groups: dict[str, list[float]] = {}
    for each in found:
        for part in each["test"]["slices"]:
            if part["by"] == "users":
                groups.setdefault(part["name"], []).append(part["metrics"]["recall@20"])
    return {name: f"{mean(values):.4f}" for name, values in groups.items()}


if __name__ == "__main__":
    app()
