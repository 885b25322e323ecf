"""Training speed: Headwater beside FuxiCTR, beside a plain torch loop, and beside its own dense layers alone.

    .venv/bin/python tests/benchmarks/training.py --ids 1e6 --rival-python RIVALS/fuxictr/bin/python
        --rival-source RIVALS/FuxiCTR --out FILE

One FinalMLP on all sides: 39 fields of dimension 12, two streams of 400, 400, 400, one bilinear head, no
gates, batch normalisation, dropout or L2; batches of 4096; one process with one thread. `--ids` is the number
of embedding rows of all fields: sizes follow Criteo-Kaggle, ids are log-uniform, all from `--seed`.

Sides, each in a new process in every round:

- `headwater`: the loop of `headwater train` with its defaults (lazy tables), clipping and the check of the
  loss included, on batches in memory; and whole epochs from shards on disk, with the reader and its thread;
- `headwater, MODE`: the same with another `train.sparse.mode`, for each `--also MODE`;
- `fuxictr`: its own model, trainer and data loader (num_workers = 0) on a Parquet file of the same rows;
- `fuxictr, repaired`: the same with its fusion written as a matrix product, to show what the rest costs;
- `torch`: one nn.Embedding a field, Headwater's dense layers, Adam(fused=True) over all, no clipping;
- `dense`: the dense layers on ready embeddings with their gradients, and Adam(fused=True): the bound.

A step's figure is its median in the process; of epochs, their mean a step. A ratio is of rows per CPU
second within a round, the median over rounds with the smallest and the largest; above 1 Headwater is faster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from measure import Cost, Spread, interleave, machine, ratios, run_child, table, write_figures
from training_data import BATCH, DIM, WIDTHS, write_data

HERE = Path(__file__).parent
TARGETS = {
    ("fuxictr", 10**6): "at least 5.5x; memory at least 3x",
    ("fuxictr", 10**7): "at least 8x; memory at least 3x",
    ("torch", 10**6): "at least 1.05x",
    ("torch", 10**7): "at least 1.4x",
    ("dense", 10**6): "at least 0.90x",
}


def main() -> None:
    """Measure what the command line asks for and print it as Markdown."""
    args = _arguments()
    figures: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(args).items()}}
    print(f"{machine()}; torch {version('torch')}, torchrec {version('torchrec')}; one thread.")
    print(
        f"{args.rounds} rounds, {args.turns} x {args.steps} steps a process, {args.missing:.0%} missing."
    )
    for num_ids in args.ids:
        with tempfile.TemporaryDirectory(dir=args.work) as name:
            folder = Path(name)
            write_data(folder, num_ids, args.steps * BATCH, args.missing, args.seed)
            costs = interleave(_runs(args, folder), args.rounds)
        figures[str(num_ids)] = {
            side: [cost.result | {"child_peak_mib": cost.peak_mib} for cost in each]
            for side, each in costs.items()
        }
        print(f"\n{num_ids:,} ids\n")
        print(_table(num_ids, costs))
    write_figures(args.out, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ids", type=lambda text: int(float(text)), nargs="+", default=[10**6])
    parser.add_argument("--rival-python", type=Path, help="FuxiCTR's interpreter")
    parser.add_argument("--rival-source", type=Path, help="FuxiCTR's checkout")
    parser.add_argument("--also", nargs="*", default=["fused"], help="more modes of Headwater")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="batches in the data set")
    parser.add_argument("--turns", type=int, default=1, help="times over it, but for FuxiCTR")
    parser.add_argument("--missing", type=float, default=0.0, help="share of missing values")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where to make the temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file of the raw figures")
    args = parser.parse_args()
    if (args.rival_python is None) != (args.rival_source is None):
        parser.error("--rival-python and --rival-source go together")
    return args


def _runs(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Cost]]:
    def ours(side: str, *more: str) -> Callable[[], Cost]:
        script = HERE / "training_side.py"
        command = [sys.executable, script, side, folder, "--turns", str(args.turns), *more]
        return lambda: run_child(command)

    def rival(*more: str) -> Callable[[], Cost]:
        script = HERE / "rivals" / "fuxictr_train.py"
        shape = ["--dim", str(DIM), "--batch", str(BATCH), "--widths", ",".join(map(str, WIDTHS))]
        command = [args.rival_python, script, args.rival_source, folder, *shape, *more]
        return lambda: run_child(command)

    runs = {"headwater": ours("headwater"), "torch": ours("torch"), "dense": ours("dense")}
    for mode in args.also:
        runs[f"headwater, {mode}"] = ours("headwater", "--mode", mode)
    if args.rival_python is not None:
        runs["fuxictr"] = rival()
        runs["fuxictr, repaired"] = rival("--repaired")
    return runs


def _table(num_ids: int, costs: dict[str, list[Cost]]) -> str:
    """Return what each side costs a row, and Headwater's rows per CPU second as a multiple of its."""
    base = [median(cost.result["cpu_s"]) for cost in costs["headwater"]]
    # An epoch has no median step: it stands beside the mean of the steps in memory.
    loaded = [mean(cost.result["shards"]["cpu_s"]) for cost in costs["headwater"]]
    peak = median(cost.peak_mib for cost in costs["headwater"])
    lines: list[list[object]] = []
    for side, each in costs.items():
        cpu_s = [median(cost.result["cpu_s"]) for cost in each]
        wall_s = [median(cost.result["wall_s"]) for cost in each]
        memory = median(cost.result["peak_mib"] for cost in each)
        if side == "headwater":
            compared = ""
        elif side.startswith("fuxictr"):
            # Both load their data: Headwater's epochs count, and the peak of the whole process.
            compared = f"{ratios(loaded, cpu_s).text()}; memory {memory / peak:.1f}x"
        else:
            compared = ratios(base, cpu_s).text(3)
        lines.append(_line(side, cpu_s, wall_s, memory, compared, TARGETS.get((side, num_ids), "")))
        if side.startswith("headwater"):
            epochs = [cost.result["shards"] for cost in each]
            cpu_s = [mean(epoch["cpu_s"]) for epoch in epochs]
            wall_s = [mean(epoch["wall_s"]) for epoch in epochs]
            means = [mean(cost.result["cpu_s"]) for cost in each]
            compared = f"{ratios(cpu_s, means).text(3)} of memory's"
            memory = median(cost.peak_mib for cost in each)
            name = f"{side}, from shards"
            lines.append(_line(name, cpu_s, wall_s, memory, compared, "at least 0.95"))
    head = ["side", "CPU us/row", "wall us/row", "rows per CPU s", "peak MiB", "ratio", "target"]
    return table(head, lines)


def _line(
    side: str,
    cpu_s: list[float],
    wall_s: list[float],
    peak_mib: float,
    compared: str,
    target: str,
) -> list[object]:
    return [
        side,
        Spread.of(1e6 * second / BATCH for second in cpu_s).text(1),
        f"{1e6 * median(wall_s) / BATCH:,.1f}",
        f"{BATCH / median(cpu_s):,.0f}",
        f"{peak_mib:,.0f}",
        compared,
        target,
    ]


if __name__ == "__main__":
    main()
