"""A tour of the Python API, in cells: open it as a notebook, or run it as a script.

From raw ratings to a release that scores raw features, with the job that `headwater demo` runs.
"""

# %% The job is a file; any value of it can be changed here.
from pathlib import Path

import polars as pl

from headwater.pipelines import evaluate, export, load_job, prepare, score, train, write_report
from headwater.pipelines.datasets import get

data = get("ml-100k")
job = load_job(
    Path(__file__).parent.parent / "pipelines" / "commands" / "demo.toml",
    [f"data.root={data}", "train.epochs=2"],
)
[column.name for column in job.features.columns]

# %% Raw logs become encoded shards. Equal data and features are prepared once.
prepared = prepare(job)
for column in prepared.schema.columns:
    print(f"{column.name:<22} {column.encoder:<12} {column.cardinality:>6} codes")

# %% Train, then measure the best epoch on validation and test data.
run = train(job, prepared)
metrics = evaluate(run)
print({split: round(metrics[split]["auc"], 4) for split in ("valid", "test")})

# %% The report is one HTML file.
print(write_report(run.path))

# %% The release takes raw features: no encoder runs outside the graph.
release = export(run)
rows = pl.DataFrame(
    {
        "user_id": [1, 1],
        "item_id": [50, 1_000_000],  # a film it has seen, and one it has not
        "age": [24, 24],
        "gender": ["M", "M"],
        "occupation": ["technician", None],
        "release_year": [1977, None],
        "genres": [["Action", "Sci-Fi"], []],
        "timestamp": [893_286_638, 893_286_638],
    }
)
rows.write_parquet("two_rows.parquet")
score(release, "two_rows.parquet", Path("scored.parquet"))
print(pl.read_parquet("scored.parquet").select("user_id", "item_id", "prob"))
