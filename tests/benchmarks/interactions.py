"""OptInter on data with planted truth: how many pairs get the method that was planted.

    .venv/bin/python tests/benchmarks/interactions.py --seeds 1 2 3 4 5 --work FOLDER

For each seed data of the defaults of `headwater datasets make planted` is made (250,000 rows, 12 fields, 66
pairs of which 3 are planted to be memorised and 3 to be factorised), and OptInter searches by its defaults
on it, with `min_count = 10`, dimension 8 and two hidden layers of 64. `planted` counts the planted pairs with
their own method, `naive` the others that are left out.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from measure import machine, table

from headwater.models.ctr.architecture import read_architecture
from headwater.pipelines import load_job, prepare, train
from headwater.pipelines.planted.config import PlantedConfig
from headwater.pipelines.planted.write import write_planted

MODEL = 'model={type="optinter", embedding_dim=8, interaction_dim=8, hidden=[64, 64], min_count=10}'


def main() -> None:
    """Search on the data of each seed, and print what was found as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    args = parser.parse_args()
    lines = [search(args.work, seed) for seed in args.seeds]
    print(machine())
    print(table(["seed", "planted", "of", "naive", "of", "others that are not"], lines))


def search(work: Path, seed: int) -> list[object]:
    """Return the counts of one seed, and the pairs that were wrongly kept."""
    folder = work / f"planted-{seed}"
    write_planted(folder, PlantedConfig(seed=seed))
    job = load_job(folder / "job.toml", [MODEL, "train.batch_size=1024"])
    run = train(job, prepare(job, work / "prepared"), runs=work / "runs", search_only=True)
    truth = tomllib.loads((folder / "truth.toml").read_text())
    planted = {frozenset(pair["fields"]): pair["method"] for pair in truth["pairs"]}
    found = {frozenset(pair.columns): pair for pair in read_architecture(run.architecture)}
    own = sum(found[pair].method == method for pair, method in planted.items())
    others = [pair for fields, pair in found.items() if fields not in planted]
    kept = [pair for pair in others if pair.method != "naive"]
    named = ", ".join(f"{pair.name}: {pair.method}" for pair in kept)
    return [seed, own, len(planted), len(others) - len(kept), len(others), named]


if __name__ == "__main__":
    main()
