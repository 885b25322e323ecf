"""OptInter at scale: planted data through prepare, search and training, with the cost of each step.

    .venv/bin/python tests/benchmarks/search_scale.py --work FOLDER

5,000,000 rows of 26 fields and 1,000,000 ids; 325 pairs at `min_count = 10` and interaction dimension 4, one
epoch a phase, batches of 4,096. Each step is a command of its own; memory is the most that its process held.
A step whose result is in the folder is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from measure import machine, run_child, table

HEADWATER = Path(sys.executable).parent / "headwater"
PLANTED = {
    "rows": "5000000",
    "fields": "26",
    "ids": "1000000",
    "small_fields": "8",
    "small_ids": "150",
    "useless_fields": "4",
    "memorised": "8",
    "factorised": "8",
    "useless_ids": "0.3",
    "exponent": "1",
}
MODEL = (
    'model={type="optinter", embedding_dim=4, interaction_dim=4, hidden=[64], min_count=10, '
    "search={epochs=1}}"
)


def main() -> None:
    """Run the steps that have no result yet, and print all as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for data, runs and results"
    )
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    data = [word for key, value in PLANTED.items() for word in ("--set", f"{key}={value}")]
    settings = [
        word
        for value in (MODEL, "train.batch_size=4096", "train.epochs=1")
        for word in ("--set", value)
    ]
    steps = {
        "make the data": ["datasets", "make", "planted", "data", *data],
        "prepare": ["prepare", "data/job.toml", *settings],
        "search": ["search", "data/job.toml", *settings],
        "train": ["train", "--resume"],
        "evaluate": ["evaluate", "--run"],
    }
    rows: list[list[object]] = []
    for name, words in steps.items():
        path = work / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            run = [str(each) for each in sorted(work.glob("runs/*/*"))[-1:]] * (
                name in ("train", "evaluate")
            )
            cost = run_child([HEADWATER, *words, *run], folder=work)
            path.write_text(json.dumps({"cpu_s": cost.cpu_s, "peak_mib": cost.peak_mib}))
        found = json.loads(path.read_text())
        rows.append([name, f"{found['cpu_s']:,.0f}", f"{found['peak_mib']:,.0f}"])
    print(machine())
    print(table(["step", "CPU s", "peak MiB"], rows))


if __name__ == "__main__":
    main()
