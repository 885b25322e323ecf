"""Quality, in three comparisons; each prints a Markdown table of AUC and log loss, mean and sd over seeds.

reference   FinalMLP and DNN against FuxiCTR on the same files of Frappe_x1, published settings, tables dense
            in both: the same batch size, optimiser, regulariser, stopping rule. Best validation AUC decides
            the epoch; the test rows are looked at once, after it.
modes       How tables learn: the same FinalMLP under each mode of `train.sparse`, each with its own learning
            rate and L2, chosen on validation rows from equally many trials (one seed); then five seeds.
baselines   Every model on both data sets, tables dense, L2 chosen on validation rows from three (one seed).

Trainings whose result is in `--work` are not run again; a series can be stopped and started at any time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cyclopts import App
from measure import table, write_figures
from quality_runs import MODELS, Set, Training, Workshop

app = App(help=__doc__)

PUBLISHED = {"finalmlp": (0.98607, 0.1484), "dnn": (0.98405, 0.1584)}
"""BARS, Frappe_x1, test AUC and log loss: FinalMLP's best run, DNN's mean of five (sd 0.00051)."""
RATES = {"lazy": (5e-4, 1e-3, 2e-3), "fused": (0.01, 0.03, 0.1), "dense": (5e-4, 1e-3, 2e-3)}
PENALTIES: dict[Set, tuple[float, ...]] = {
    "frappe": (1e-2, 5e-2, 2e-1),
    "ml100k": (5e-2, 2e-1, 8e-1),
}
"""Learning rates and L2 weights of the tables that are tried: nine pairs in each mode."""
DIMS: dict[Set, int] = {"frappe": 12, "ml100k": 16}
"""Embedding dimension where modes are compared: fused tables want a multiple of 4."""
TUNED: dict[Set, str] = {"frappe": "small_finalmlp", "ml100k": "finalmlp"}
TRIAL_SEED = 1
ALLOWED_LOSS = 0.0005
BASELINE_DIMS: dict[Set, int] = {"frappe": 10, "ml100k": 16}
BASELINE_PENALTIES: dict[Set, tuple[float, ...]] = {
    "frappe": (1e-5, 1e-3, 5e-2),
    "ml100k": (1e-5, 1e-3, 2e-1),
}
SHALLOW = ("logistic_regression", "fm")
"""Models whose tables learn at 0.005, others at 0.001, where 100 epochs are too few for these two."""


@app.command
def reference(
    *,
    frappe: Path,
    work: Path,
    fuxictr: Path | None = None,
    rival_python: Path | None = None,
    seeds: int = 5,
    out: Path | None = None,
) -> None:
    """FinalMLP and DNN of FuxiCTR and of Headwater on Frappe_x1.

    Parameters
    ----------
    frappe
        Folder of train_reconstructed.parquet, valid.parquet and test.parquet.
    work
        Folder for prepared data and results.
    fuxictr
        Checkout of FuxiCTR at 0245987; without it only what is in `work` is shown of it.
    rival_python
        Interpreter with what FuxiCTR needs.
    """
    shop = Workshop({"frappe": frappe}, work)
    results: dict[str, list[dict[str, Any]]] = {}
    for model in PUBLISHED:
        ours = [
            shop.run(Training("frappe", model, 10, "dense", 1e-3, 0.05, seed))
            for seed in range(1, seeds + 1)
        ]
        theirs = [_rival(shop, model, seed, fuxictr, rival_python) for seed in range(1, seeds + 1)]
        results[f"headwater {model}"] = ours
        results[f"fuxictr {model}"] = [each for each in theirs if each is not None]
    rows: list[list[object]] = []
    for name, found in results.items():
        if found:
            auc, loss = PUBLISHED[name.split()[1]]
            rows.append([name, *_figures(found), f"{auc:.5f}", f"{loss:.4f}"])
    print(table([*_HEAD, "published AUC", "published log loss"], rows))
    for model in PUBLISHED:
        ours, theirs = results[f"headwater {model}"], results[f"fuxictr {model}"]
        if len(theirs) > 1:
            gap = _mean(ours, "test_auc") - _mean(theirs, "test_auc")
            sd = stdev(each["test_auc"] for each in theirs)
            verdict = "met" if gap >= -sd else "missed"
            print(f"\n{model}: ours minus theirs {gap:+.5f}, one sd of theirs {sd:.5f}: {verdict}")
    write_figures(out, {"results": results})


def _rival(
    shop: Workshop, model: str, seed: int, fuxictr: Path | None, python: Path | None
) -> dict[str, Any] | None:
    name = f"fuxictr-{model}-s{seed}"
    found = shop.done(name)
    if found is not None or fuxictr is None or python is None:
        return found
    script = Path(__file__).parent / "rivals" / "fuxictr_quality.py"
    subprocess.run(
        [
            *(str(python), str(script), "--fuxictr", str(fuxictr), "--model", model),
            *("--data", str(shop.data["frappe"]), "--work", str(shop.work / "fuxictr")),
            *("--seed", str(seed), "--out", str(shop.path(name))),
        ],
        check=True,
    )
    return shop.done(name)


@app.command
def modes(
    *,
    frappe: Path | None = None,
    ml100k: Path | None = None,
    work: Path,
    only: Sequence[str] = ("dense", "lazy", "fused"),
    seeds: int = 5,
    trials_only: bool = False,
    out: Path | None = None,
) -> None:
    """FinalMLP under each mode of the tables, tuned by equally many trials.

    Parameters
    ----------
    only
        Modes to compare; the first is what the others are measured against.
    trials_only
        Stop after the trials.
    """
    shop = Workshop(_sets(frappe, ml100k), work)
    figures: dict[str, Any] = {}
    for data in shop.data:
        # In turn, so that a series that was stopped early has tried each mode equally often.
        for turn in zip(*(_trials(data, mode) for mode in only), strict=True):
            for trial in turn:
                shop.run(trial)
        rows: list[list[object]] = []
        for mode in only:
            best, trials = _best(shop, _trials(data, mode))
            figures[f"{data} {mode}"] = {"trials": trials}
            print(_trial_table(data, mode, trials) + "\n", flush=True)
            if trials_only:
                continue
            found = [shop.run(replace(best, seed=seed)) for seed in range(1, seeds + 1)]
            figures[f"{data} {mode}"] |= {"runs": found}
            first = figures[f"{data} {only[0]}"]["runs"]
            gap = _mean(found, "test_auc") - _mean(first, "test_auc")
            verdict = "yes" if gap >= -ALLOWED_LOSS else "no"
            rows.append(
                [
                    f"{data} {mode}",
                    *(best.lr, best.l2, *_figures(found)),
                    *((f"{gap:+.5f}", verdict) if mode != only[0] else ("", "")),
                ]
            )
        if rows:
            head = [_HEAD[0], "lr", "l2", *_HEAD[1:], f"minus {only[0]}", "within 0.0005"]
            print(table(head, rows) + "\n", flush=True)
    write_figures(out, figures)


def _trials(data: Set, mode: str) -> list[Training]:
    """Return the trials of a mode, from the middle of the grid outwards."""
    rates, penalties = RATES[mode], PENALTIES[data]
    places = sorted(
        product(range(len(rates)), range(len(penalties))),
        key=lambda place: abs(place[0] - len(rates) // 2) + abs(place[1] - len(penalties) // 2),
    )
    return [
        Training(
            *(data, TUNED[data], DIMS[data], mode, rates[i], penalties[j], TRIAL_SEED),
            min_delta=1e-4,
        )
        for i, j in places
    ]


def _best(shop: Workshop, trials: Sequence[Training]) -> tuple[Training, list[dict[str, Any]]]:
    """Return the trial with the best validation AUC, and what all trials gave."""
    results = [shop.run(trial) for trial in trials]
    best = max(range(len(trials)), key=lambda index: results[index]["valid_auc"])
    return trials[best], results


def _trial_table(data: Set, mode: str, trials: list[dict[str, Any]]) -> str:
    rates, penalties = RATES[mode], PENALTIES[data]
    auc = {(each["lr"], each["l2"]): each["valid_auc"] for each in trials}
    rows = [[f"{lr:g}", *(f"{auc[lr, l2]:.5f}" for l2 in penalties)] for lr in rates]
    return table([f"{data} {mode}: lr \\ l2", *(f"{l2:g}" for l2 in penalties)], rows)


@app.command
def baselines(
    *,
    frappe: Path | None = None,
    ml100k: Path | None = None,
    work: Path,
    seeds: int = 3,
    out: Path | None = None,
) -> None:
    """Every model on both data sets, each with its own L2 of the tables."""
    shop = Workshop(_sets(frappe, ml100k), work)
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    for data in shop.data:
        for model in (name for name in MODELS[data] if name != TUNED["frappe"]):
            dim = 1 if model == "logistic_regression" else BASELINE_DIMS[data]
            lr = 5e-3 if model in SHALLOW else 1e-3
            trials = [
                Training(data, model, dim, "dense", lr, l2, TRIAL_SEED)
                for l2 in BASELINE_PENALTIES[data]
            ]
            best, tried = _best(shop, trials)
            found = [shop.run(replace(best, seed=seed)) for seed in range(1, seeds + 1)]
            figures[f"{data} {model}"] = {"trials": tried, "runs": found}
            rows.append([f"{data} {model}", f"{best.l2:g}", *_figures(found)])
    print(table([_HEAD[0], "l2", *_HEAD[1:]], rows))
    write_figures(out, figures)


def _sets(frappe: Path | None, ml100k: Path | None) -> dict[Set, Path]:
    given: dict[Set, Path | None] = {"frappe": frappe, "ml100k": ml100k}
    return {name: path for name, path in given.items() if path is not None}


_HEAD = (
    *("", "seeds", "valid AUC", "test AUC, mean", "sd", "test log loss, mean", "sd"),
    *("best epoch", "CPU s a run"),
)


def _figures(found: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield " ".join(str(each["seed"]) for each in found)
    yield f"{_mean(found, 'valid_auc'):.5f}"
    for key, digits in (("test_auc", 5), ("test_logloss", 4)):
        yield f"{_mean(found, key):.{digits}f}"
        yield f"{stdev(each[key] for each in found):.{digits}f}" if len(found) > 1 else ""
    yield f"{_mean(found, 'best_epoch'):.1f}"
    yield f"{_mean(found, 'cpu_s'):.0f}"


def _mean(found: Sequence[dict[str, Any]], key: str) -> float:
    return mean(each[key] for each in found)


if __name__ == "__main__":
    app()
