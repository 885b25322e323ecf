"""CPU seconds and peak memory of fit plus encode: `headwater prepare` beside FuxiCTR and plain Polars.

    .venv/bin/python tests/benchmarks/preparing.py --work FOLDER
        [--rival-python RIVALS/fuxictr/bin/python --fuxictr RIVALS/FuxiCTR]

Both comparisons: rows like Criteo's (`criteo_like.py`), 13 counts in buckets of the logarithm squared and 26
categories, of each the values seen ten times or more in the training file; a training and a validation file,
both encoded by what the first one teaches. Each side is one process, its start and its imports counted.

- `fuxictr`: on CSV, FuxiCTR's processor for Criteo as its benchmarks configure it
  (`rivals/fuxictr_prepare.py`). It reads the file again for each column and looks values up in Python.
  Headwater reads a CSV twice, once to settle the types of its columns, once to stage the rows in Parquet, and
  fits and encodes from there.
- `polars`: on Parquet, `polars_prepare.py`, written by hand for this task. Both sides read the file in place.
  Its output is as large as ours; ours is also hashed and flushed to disk, and missing and unknown values are
  counted.

A ratio is the rival's CPU time over ours for FuxiCTR, ours over the rival's for Polars, round by round. The
sizes of all vocabularies (of counts for Polars only: FuxiCTR takes a gap for 0), and for Polars all codes of
the training rows, are compared too: both sides do the same work.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import criteo_like
import measure
from measure import Cost, Spread

HEADWATER = Path(sys.executable).with_name("headwater")
HERE = Path(__file__).parent
VALID_ROWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data and output")
    parser.add_argument("--rival-python", type=Path, help="interpreter of FuxiCTR; none: left out")
    parser.add_argument("--fuxictr", type=Path, help="checkout of FuxiCTR")
    parser.add_argument("--csv-rows", type=int, default=1_000_000)
    parser.add_argument("--parquet-rows", type=int, default=5_000_000, help="0: Polars left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the raw figures as JSON")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(given).items()}}
    lines: list[list[str]] = []
    if given.rival_python is not None:
        costs = _against_fuxictr(given)
        figures["fuxictr"] = {name: [asdict(cost) for cost in all_] for name, all_ in costs.items()}
        faster = measure.ratios(_cpu(costs["headwater"]), _cpu(costs["fuxictr"]))
        lines += _lines(
            f"{given.csv_rows:,} rows of CSV", costs, "fuxictr", f"{faster.text()}, at least 5"
        )
    if given.parquet_rows:
        costs = _against_polars(given)
        figures["polars"] = {name: [asdict(cost) for cost in all_] for name, all_ in costs.items()}
        slower = measure.ratios(_cpu(costs["polars"]), _cpu(costs["headwater"]))
        lines += _lines(
            f"{given.parquet_rows:,} rows of Parquet",
            costs,
            "polars",
            f"{slower.text()}, at most 1.3",
        )
    print(f"{measure.machine()}; {given.rounds} rounds, {given.threads} thread(s) a side\n")
    head = ["data", "side", "CPU s", "wall s", "peak MiB", "ratio of CPU time, target"]
    print(measure.table(head, lines))
    measure.write_figures(given.out, figures)


def _lines(data: str, costs: dict[str, list[Cost]], rival: str, ratio: str) -> list[list[str]]:
    return [
        [
            data,
            name,
            Spread.of(_cpu(costs[name])).text(1),
            Spread.of(cost.wall_s for cost in costs[name]).text(1),
            Spread.of(cost.peak_mib for cost in costs[name]).text(0),
            ratio if name == "headwater" else "",
        ]
        for name in (rival, "headwater")
    ]


def _cpu(costs: list[Cost]) -> list[float]:
    return [cost.cpu_s for cost in costs]


def _against_fuxictr(given: argparse.Namespace) -> dict[str, list[Cost]]:
    train, valid = _data(given.work, ".csv", given.csv_rows)
    ours = _ours(given, train, valid)
    out = given.work / "fuxictr"
    worker = HERE / "rivals" / "fuxictr_prepare.py"

    def theirs() -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        command = [given.rival_python, worker, given.fuxictr, train, valid, out]
        return measure.run_child(command, threads=given.threads)

    costs = measure.interleave({"fuxictr": theirs, "headwater": ours}, given.rounds)
    sizes = _sizes(given.work / costs["headwater"][-1].result["prepared"])
    their_sizes = costs["fuxictr"][-1].result["sizes"]
    for name in criteo_like.CATEGORIES:
        assert sizes[name] == their_sizes[name], (
            f"{name}: {sizes[name]}, FuxiCTR {their_sizes[name]}"
        )
    shutil.rmtree(out)
    return costs


def _against_polars(given: argparse.Namespace) -> dict[str, list[Cost]]:
    train, valid = _data(given.work, ".parquet", given.parquet_rows)
    ours = _ours(given, train, valid)
    out = given.work / "polars"

    def theirs() -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, HERE / "polars_prepare.py", train, valid, out]
        return measure.run_child(command, threads=given.threads)

    costs = measure.interleave({"polars": theirs, "headwater": ours}, given.rounds)
    _check_codes(given.work / costs["headwater"][-1].result["prepared"], out / "train.arrow")
    shutil.rmtree(out)
    return costs


def _data(folder: Path, suffix: str, num_rows: int) -> tuple[Path, Path]:
    return (
        criteo_like.make(folder / f"train-{num_rows}{suffix}", num_rows, 0),
        criteo_like.make(folder / f"valid-{VALID_ROWS}{suffix}", VALID_ROWS, 1),
    )


def _ours(given: argparse.Namespace, train: Path, valid: Path) -> Callable[[], Cost]:
    job = given.work / f"{train.stem}.toml"
    criteo_like.write_job(job, train.absolute(), valid.absolute())
    root = given.work / "prepared"

    def run() -> Cost:
        shutil.rmtree(root, ignore_errors=True)
        command = [HEADWATER, "prepare", job.absolute(), "--json"]
        return measure.run_child(command, threads=given.threads, folder=given.work)

    return run


def _sizes(prepared: Path) -> dict[str, int]:
    """Return the size of each vocabulary, without missing and unknown."""
    from headwater.pipelines.preparing.prepare import load_prepared

    schema = load_prepared(prepared).schema
    return {column.name: column.cardinality - 2 for column in schema.columns}


def _check_codes(prepared: Path, theirs: Path) -> None:
    """Compare all codes of the training rows with those of a table with a column a feature."""
    import numpy as np
    import polars as pl

    from headwater.pipelines.preparing.prepare import load_prepared

    ours = load_prepared(prepared)
    names = [column.name for column in ours.schema.codes]
    shards = ours.dataset("train")
    start = 0
    for index, num_rows in enumerate(shards.shard_rows):
        rows = pl.scan_ipc(theirs).slice(start, num_rows).select(names).collect().to_numpy()
        assert np.array_equal(rows, shards.arrays(index).codes), f"shard {index} differs"
        start += num_rows
    assert start == pl.scan_ipc(theirs).select(pl.len()).collect().item()


if __name__ == "__main__":
    main()
