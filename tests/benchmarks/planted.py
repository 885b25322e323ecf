"""OptInter and OptEmbed on data with planted truth: how much of it they find.

optinter    How many pairs get the method that was planted, and the test AUC of the architecture that was
            found beside that of a random one of equal memory. Data of the defaults of `headwater datasets
            make planted`: 250,000 rows, 12 fields, 66 pairs, of which 3 are to be memorised and 3 to be
            factorised.
optembed    How many useless rows of the tables are pruned, and how many useful ones are lost. Data of
            `docs/planted.md` for methods that choose embeddings: 750,000 rows, 8 fields, 8,000 values, half
            of which have no effect.

The seeds are those of the data; searches and trainings have the defaults. What lies in `--work` is not run
again; a series can be stopped and started at any time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from cyclopts import App, Parameter
from measure import machine, table
from quality_runs import Workshop
from random_pairs import random_methods, search_config, table_sizes, write_methods
from search_runs import searched, trained

from headwater.feature_store.schema import FIRST_CODE, Schema
from headwater.models.ctr.architecture import read_architecture
from headwater.models.ctr.pruning import Kept, read_chosen
from headwater.pipelines import load_job, prepare
from headwater.pipelines.events import row_keys
from headwater.pipelines.planted.config import PlantedConfig
from headwater.pipelines.planted.write import write_planted

app = App(help=__doc__)

Seeds = Annotated[Sequence[int], Parameter(consume_multiple=True)]
SEEDS = (1, 2, 3, 4, 5)
OPTINTER = (
    'model={type="optinter", embedding_dim=8, interaction_dim=8, hidden=[64, 64], min_count=10}',
    "train.batch_size=1024",
)


@app.command
def optinter(*, work: Path, seeds: Seeds = SEEDS, rows: int = 250_000) -> None:
    """Judge the pairs that OptInter chooses, and the model that is then trained.

    Parameters
    ----------
    work
        Folder for data, runs and results.
    rows
        Rows of the data; with fewer the truth is harder to find.
    """
    lines = [_pairs(Workshop({}, work), seed, rows) for seed in seeds]
    head = ["seed", "planted", "of", "naive", "of", "others that are not"]
    print(machine())
    print(table([*head, "test AUC", "bytes", "random, test AUC", "bytes", "planted AUC"], lines))


def _pairs(shop: Workshop, seed: int, rows: int) -> list[object]:
    """Return the counts of one seed, the pairs that were wrongly kept, and what two architectures reach."""
    name = f"optinter-{rows}-s{seed}"
    planted = write_planted(shop.work / "data" / name, PlantedConfig(rows=rows, seed=seed))
    job = load_job(planted.job, OPTINTER)
    run, _ = searched(shop, f"{name}-search", job)
    found = read_architecture(run.architecture)
    truth = tomllib.loads((planted.folder / "truth.toml").read_text(encoding="utf-8"))
    wanted = {frozenset(pair["fields"]): pair["method"] for pair in truth["pairs"]}
    own = sum(wanted.get(frozenset(pair.columns)) == pair.method for pair in found)
    others = [pair for pair in found if frozenset(pair.columns) not in wanted]
    kept = [pair for pair in others if pair.method != "naive"]
    schema = prepare(job, shop.work / "prepared").schema
    drawn = random_methods(
        [pair.method for pair in found], table_sizes(job, schema, found), search_config(job), seed
    )
    drawn_path = write_methods(shop.work / "architectures" / f"{name}.toml", found, drawn)
    results = [
        trained(
            shop, f"{name}-{kind}", load_job(planted.job, [*OPTINTER, f"model.architecture={path}"])
        )
        for kind, path in (("found", run.architecture), ("random", drawn_path))
    ]
    return [
        *(seed, own, len(wanted), len(others) - len(kept), len(others)),
        ", ".join(f"{pair.name}: {pair.method}" for pair in kept),
        *(cell for each in results for cell in (f"{each['test_auc']:.5f}", f"{each['bytes']:,}")),
        f"{planted.auc['planted']:.5f}",
    ]


@app.command
def optembed(
    *,
    work: Path,
    seeds: Seeds = SEEDS,
    base: Literal["deepfm", "dnn"] = "deepfm",
    rows: int = 750_000,
) -> None:
    """Judge the rows that OptEmbed prunes.

    A row of a table is useful where its value adds at least 1 to the logit and is seen at least 75 times in
    training, and useless where its value has no effect; others count for neither.

    Parameters
    ----------
    work
        Folder for data, runs and results.
    base
        Model whose tables are pruned.
    rows
        Rows of the data.
    """
    lines = [_rows(Workshop({}, work), seed, base, rows) for seed in seeds]
    print(machine())
    head = ["seed", "useless rows", "pruned", "useful rows", "lost", "valid AUC", "CPU s"]
    print(table(head, lines))


def _rows(shop: Workshop, seed: int, base: str, rows: int) -> list[object]:
    """Return the counts of one seed, and the shares that were pruned."""
    config = PlantedConfig(
        rows=rows,
        fields=8,
        ids=8_000,
        small_fields=0,
        useless_fields=0,
        memorised=0,
        factorised=0,
        useless_ids=0.5,
        id_effects=(1.0, 1.5),
        exponent=1.0,
        seed=seed,
    )
    name = f"optembed-{rows}-s{seed}"
    planted = write_planted(shop.work / "data" / name, config)
    model = f'model={{type="optembed", base={{type="{base}", embedding_dim=32}}}}'
    job = load_job(planted.job, [model])
    run, cpu_s = searched(shop, f"{name}-{base}-search", job)
    chosen = read_chosen(run.architecture)
    kept = _kept_values(chosen.kept, prepare(job, shop.work / "prepared").schema)
    ids = pl.read_parquet(planted.folder / "ids.parquet").join(kept, on=["column", "value"])
    cells: list[object] = []
    for is_useful in (False, True):
        pruned = ids.filter(pl.col("useful") == is_useful).select(~pl.col("kept")).to_series()
        cells += [len(pruned), f"{pruned.sum() / max(len(pruned), 1):.3f}"]
    return [seed, *cells, f"{chosen.architecture.auc:.5f}", f"{cpu_s:.0f}"]


def _kept_values(kept: Kept, schema: Schema) -> pl.DataFrame:
    """Return for each value that training has whether its row is kept."""
    columns = {column.name: column for column in schema.columns}
    return pl.concat(
        pl.DataFrame({"value": row_keys(columns[name]), "kept": kept_N[FIRST_CODE:]}).select(
            pl.lit(name).alias("column"), "value", "kept"
        )
        for name, kept_N in kept.items()
    )


if __name__ == "__main__":
    app()
