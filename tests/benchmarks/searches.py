"""OptInter and OptEmbed on real data, beside what they must beat; prints Markdown tables.

optinter    OptInter and its three corners; at 40, 20 and 10 % of the bytes of all-memorise, OptInter beside
            random architectures of equal bytes.
optembed    OptEmbed on DeepFM and FinalMLP, beside the plain model in float32 and int8, a uniformly narrower
            one, and random rows at equal bytes.

Each model has six trials on validation rows with seed 1, then three seeds whose test rows are looked at once.
Trainings whose result is in `--work` are not run again; a series can be stopped and started at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from cyclopts import App
from measure import table
from quality_runs import MODELS, Set, Workshop
from random_pairs import random_methods, search_config, table_sizes, write_methods
from search_runs import Study

from headwater.models.ctr.architecture import FoundPair, Method, read_architecture
from headwater.models.ctr.interaction_search import Sizes, choose
from headwater.models.ctr.optembed_config import OptEmbedConfig
from headwater.models.ctr.optinter_config import OptInterConfig
from headwater.models.ctr.pruned_weights import compact_weights
from headwater.models.ctr.pruning import read_chosen
from headwater.pipelines.job_model import job_model

app = App(help=__doc__)

SEEDS = (1, 2, 3)
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 5e-2, 2e-1)
"""L2 of tables, of which validation picks one."""
SHARES = (0.4, 0.2, 0.1)
RANDOM = 3
"""Random architectures a seed."""
DIM: dict[Set, int] = {"frappe": 10, "ml100k": 16}
OPTINTER = {"type": "optinter", "hidden": [128, 64], "interaction_dim": 8}
SUPERNET_DIM = 32
ALPHAS = (3e-3, 1e-2, 3e-2)
BASES: dict[str, dict[Set, dict[str, Any]]] = {
    # On Frappe smaller layers than the published ones, which take four times as long.
    "deepfm": {"frappe": MODELS["ml100k"]["deepfm"], "ml100k": MODELS["ml100k"]["deepfm"]},
    "finalmlp": {
        "frappe": MODELS["frappe"]["small_finalmlp"],
        "ml100k": MODELS["ml100k"]["finalmlp"],
    },
}
HEAD = ["", "l2", "valid AUC", "test AUC", "sd", "log loss", "sd", "bytes of tables", "CPU s a run"]


@app.command
def optinter(*, frappe: Path | None = None, ml100k: Path | None = None, work: Path) -> None:
    """OptInter, its corners, and random architectures of equal bytes."""
    for study in _studies(frappe, ml100k, work):
        plain = {**OPTINTER, "embedding_dim": DIM[study.data]}
        searched = {seed: study.search("optinter", plain, seed) for seed in SEEDS}
        rows: list[list[object]] = []
        for corner in ("naive", "factorise", "memorise"):
            model = {**plain, "architecture": corner}
            l2 = study.tuned(corner, model, PENALTIES)
            rows.append(_row(corner, [study.train(corner, model, l2, seed) for seed in SEEDS]))
        own = {seed: run.architecture for seed, (run, _) in searched.items()}
        l2 = study.tuned("optinter", {**plain, "architecture": str(own[1])}, PENALTIES)
        results = [
            study.train("optinter", {**plain, "architecture": str(own[seed])}, l2, seed)
            for seed in SEEDS
        ]
        rows.append(_row("OptInter", results))
        everything = study.train("memorise", {**plain, "architecture": "memorise"}, l2, 1)["bytes"]
        for share in SHARES:
            results, others = [], []
            for seed in SEEDS:
                found = read_architecture(own[seed])
                job = study.job(plain, 0.0, 1)
                sizes = table_sizes(job, study.prepared(job).schema, found)
                limit = int(share * everything)
                if limit < sizes.main:
                    break
                methods = _within(found, sizes, study, plain, limit)
                held = sizes.total(_config(study, plain), methods)
                results.append(_trained(study, f"optinter-{held}", plain, found, methods, l2, seed))
                for number in range(RANDOM):
                    drawn = random_methods(
                        methods, sizes, _config(study, plain), seed * RANDOM + number
                    )
                    name = f"random{number}-{held}"
                    others.append(_trained(study, name, plain, found, drawn, l2, seed))
            if not results:
                rows.append([f"{share:.0%}: below the main table", *[""] * (len(HEAD) - 1)])
                continue
            rows.append(_row(f"OptInter, {share:.0%}", results))
            rows.append(_row(f"random, {share:.0%}", others))
        search_s = mean(cpu_s for _, cpu_s in searched.values())
        print(
            f"\n{study.data}, a search takes {search_s:.0f} CPU s\n\n" + table(HEAD, rows),
            flush=True,
        )


def _within(
    found: Sequence[FoundPair], sizes: Sizes, study: Study, plain: Mapping[str, Any], limit: int
) -> list[Method]:
    """Return the methods that the search would have chosen with `max_bytes`."""
    weights_P3 = torch.tensor([pair.strength for pair in found], dtype=torch.float64).log()
    config = _config(study, plain).model_copy(update={"max_bytes": limit})
    return choose(weights_P3, sizes, config)


def _config(study: Study, plain: Mapping[str, Any]) -> OptInterConfig:
    """Return the settings of a search."""
    return search_config(study.job(plain, 0.0, 1))


def _trained(
    study: Study,
    name: str,
    plain: Mapping[str, Any],
    found: Sequence[FoundPair],
    methods: Sequence[Method],
    l2: float,
    seed: int,
) -> dict[str, Any]:
    path = study.shop.work / "architectures" / f"{study.data}-{name}-s{seed}.toml"
    write_methods(path, found, methods)
    return study.train(name, {**plain, "architecture": str(path)}, l2, seed)


@app.command
def optembed(*, frappe: Path | None = None, ml100k: Path | None = None, work: Path) -> None:
    """OptEmbed on two bases, beside narrower tables, int8 rows and random rows at equal bytes."""
    for study in _studies(frappe, ml100k, work):
        rows: list[list[object]] = []
        for base, settings in BASES.items():
            plain = {"type": base, **settings[study.data], "embedding_dim": SUPERNET_DIM}
            l2 = study.tuned(base, plain, PENALTIES)
            whole = [study.train(base, plain, l2, seed) for seed in SEEDS]
            rows.append(_row(base, whole))
            rows.append(_row(f"{base}, int8", [study.int8(each) for each in whole]))
            ranked = sorted(PENALTIES, key=lambda l2: -study.train(base, plain, l2, 1)["valid_auc"])
            trials = {
                (alpha, weight): _pruned(study, base, plain, alpha, weight, 1)
                for alpha in ALPHAS
                for weight in ranked[:2]
            }
            alpha, weight = max(trials, key=lambda each: trials[each]["valid_auc"])
            pruned = [_pruned(study, base, plain, alpha, weight, seed) for seed in SEEDS]
            rows.append(_row(f"OptEmbed, {base}, alpha {alpha:g}", pruned))
            drawn = [_random_rows(study, base, plain, alpha, weight, seed) for seed in SEEDS]
            rows.append(_row(f"{base}, random rows", drawn))
            limit = mean(each["bytes"] for each in pruned)
            for label, bits in (
                ("narrower", 4 * SUPERNET_DIM),
                ("int8 of equal bytes", SUPERNET_DIM + 2),
            ):
                # First-order tables are a part of both sides.
                share = limit / whole[0]["bytes"] * 4 * SUPERNET_DIM / bits
                dim = max(1, int(SUPERNET_DIM * share))
                narrow = [
                    study.train(f"{base}-{dim}", {**plain, "embedding_dim": dim}, l2, seed)
                    for seed in SEEDS
                ]
                if "int8" in label:
                    narrow = [study.int8(each) for each in narrow]
                rows.append(_row(f"{base}, {label}: dimension {dim}", narrow))
        print(f"\n{study.data}\n\n" + table(HEAD, rows), flush=True)


def _model(plain: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    return {"type": "optembed", "base": dict(plain), "search": {"alpha": alpha}}


def _pruned(
    study: Study, base: str, plain: Mapping[str, Any], alpha: float, l2: float, seed: int
) -> dict[str, Any]:
    model = _model(plain, alpha)
    run, cpu_s = study.search(f"optembed-{base}-{alpha:g}", model, seed)
    model["architecture"] = str(run.architecture)
    return study.train(f"optembed-{base}-{alpha:g}", model, l2, seed) | {"search_s": cpu_s}


def _random_rows(
    study: Study, base: str, plain: Mapping[str, Any], alpha: float, l2: float, seed: int
) -> dict[str, Any]:
    """Return the results of as many rows of each feature, drawn at random, with the same dimensions."""
    model = _model(plain, alpha)
    run, _ = study.search(f"optembed-{base}-{alpha:g}", model, seed)
    chosen = read_chosen(run.architecture)
    generator = torch.Generator().manual_seed(seed)
    kept = {
        name: _shuffled(torch.from_numpy(kept_N.copy()), generator).numpy()
        for name, kept_N in chosen.kept.items()
    }
    _, config = job_model(study.job({**model, "architecture": str(run.architecture)}, l2, seed))
    assert isinstance(config, OptEmbedConfig)
    features = chosen.architecture.features
    first = torch.load(next(run.path.glob("phases/*supernet/first.pt")), weights_only=True)
    weights = compact_weights(first, config.with_features(features), kept, list(features))
    folder = study.shop.work / "architectures" / f"{study.data}-random-{base}-{alpha:g}-s{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in replace(chosen, kept=kept, weights=weights).files().items():
        (folder / name).write_bytes(content)
    model["architecture"] = str(folder)
    return study.train(f"random-{base}-{alpha:g}", model, l2, seed)


def _shuffled(kept_N: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return which rows are kept in a random order; row 0, of missing values, stays where it is."""
    order = 1 + torch.randperm(len(kept_N) - 1, generator=generator)
    return torch.cat([kept_N[:1], kept_N[order]])


def _studies(frappe: Path | None, ml100k: Path | None, work: Path) -> list[Study]:
    given: dict[Set, Path | None] = {"ml100k": ml100k, "frappe": frappe}
    folders: dict[Set, Path] = {name: path for name, path in given.items() if path is not None}
    shop = Workshop(folders, work)
    return [Study(name, shop) for name in folders]


def _row(name: str, found: Sequence[Mapping[str, Any]]) -> list[object]:
    def values(key: str) -> list[float]:
        return [each[key] for each in found]

    return [
        *(name, f"{found[0].get('l2', ''):}", f"{mean(values('valid_auc')):.5f}"),
        *(f"{mean(values('test_auc')):.5f}", f"{stdev(values('test_auc')):.5f}"),
        *(f"{mean(values('test_logloss')):.4f}", f"{stdev(values('test_logloss')):.4f}"),
        f"{mean(values('bytes')):,.0f}",
        f"{mean(values('cpu_s')):.0f}" if "cpu_s" in found[0] else "",
    ]


if __name__ == "__main__":
    app()
