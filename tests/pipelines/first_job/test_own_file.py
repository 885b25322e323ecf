"""A job that `init` writes gives a release that scores its own training file, and answers raw requests."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines import export, load_job, prepare, score, train
from headwater.pipelines.checking.validation import check_job
from headwater.pipelines.first_job.guess import Guess
from headwater.pipelines.first_job.write import write_job
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.release import load_release
from headwater.serving.signature import columns_to_arrays

ROWS = 600
GENRES = ["Comedy", "Drama", "Action", "Film-Noir", "Sci Fi"]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def clicks() -> pl.DataFrame:
    random = np.random.default_rng(0)
    chosen = [random.permutation(5)[: random.integers(0, 4)] for _ in range(ROWS)]
    return pl.DataFrame(
        {
            "user_id": random.integers(1, 40, ROWS),
            "movie_id": random.integers(1, 60, ROWS),
            "genres": ["|".join(GENRES[i] for i in each) for each in chosen],
            "shown_at": [
                f"2026-03-{1 + i % 28:02}T{i % 24:02}:{i % 60:02}:30{'' if i % 3 else '.250'}+02:00"
                for i in range(ROWS)
            ],
            "click": random.integers(0, 2, ROWS),
        }
    )


def ndjson(frame: pl.DataFrame, path: str) -> None:
    frame.write_ndjson(path)


def semicolons(frame: pl.DataFrame, path: str) -> None:
    frame.write_csv(path, separator=";")


def decimals(frame: pl.DataFrame, path: str) -> None:
    frame.with_columns(pl.col("user_id").cast(pl.Decimal(20, 0))).write_parquet(path)


FILES: dict[str, tuple[str, Callable[[pl.DataFrame, str], Any], dict[str, Any]]] = {
    "csv": ("clicks.csv", lambda frame, path: frame.write_csv(path), {}),
    "parquet": ("clicks.parquet", lambda frame, path: frame.write_parquet(path), {}),
    "decimals": ("clicks.parquet", decimals, {}),
    "ndjson": ("clicks.ndjson", ndjson, {}),
    "semicolons": ("clicks.csv", semicolons, {"delimiter": ";"}),
}


def released(job: Job) -> Path:
    return export(train(job, prepare(job)))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("out", ["scored.parquet", "scored.csv"])
def test_the_release_of_a_first_job_scores_its_training_file(kind: str, out: str) -> None:
    path, write, csv = FILES[kind]
    write(clicks(), path)
    job_path, guessed = write_job([path], csv=csv)
    assert isinstance(guessed, Guess)
    assert guessed.derive == {}
    job = load_job(job_path, ["train.epochs=1", "model.hidden_1=[8]", "model.hidden_2=[8]"])
    validation = check_job(job)
    assert not validation.problems
    assert not validation.notes
    release = released(job)
    result = score(release, path, Path(out))
    assert result["rows"] == ROWS
    found = pl.read_parquet(out) if out.endswith(".parquet") else pl.read_csv(out)
    scorer = load_release(release, Scorer)
    # The service gets what the file holds, as its manifest says: text as it is.
    times = {each.name: each.dtype for each in scorer.graph.inputs}
    assert times["genres"] == "string"
    rows = clicks().to_dict(as_series=False)
    if times["shown_at"] == "int64":
        parsed = clicks()["shown_at"].str.to_datetime(format="%Y-%m-%dT%H:%M:%S%.f%z")
        rows["shown_at"] = parsed.dt.epoch("ms").to_list()
    direct = scorer.score(columns_to_arrays(scorer.graph.inputs, rows))
    np.testing.assert_array_equal(found["prob"].to_numpy().astype(np.float32), direct)


TEXT: list[dict[str, Any]] = [
    {"name": "genres", "encoder": "vocabulary", "separator": "|", "length": 3},
    {"name": "genre_hash", "column": "genres", "encoder": "hashed", "num_buckets": 50}
    | {"separator": "|", "length": 2, "keep": "head"},
    {"name": "hour", "column": "shown_at", "encoder": "calendar", "part": "hour"},
    {"name": "user_id", "encoder": "vocabulary"},
    {"name": "user_hour", "encoder": "crossed", "columns": ["user_id", "hour"]},
]


def text_job(columns: Any = TEXT, **sections: Any) -> Job:
    clicks().write_parquet("clicks.parquet")
    values: dict[str, Any] = {
        "name": "clicks",
        "data": {"source": "clicks.parquet", "split": {"by": "time", "column": "shown_at"}},
        "features": {"label": "click", "time": "shown_at", "columns": columns},
        "model": {"type": "deepfm", "hidden": [8], "embedding_dim": 4},
        "train": {"epochs": 1},
    }
    for section, settings in sections.items():
        values[section] = values.get(section, {}) | settings
    return parse_job(values)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("opset", [None, 20, 22])
def test_lists_and_times_in_text_are_read_in_the_graph(precision: str, opset: int | None) -> None:
    settings: dict[str, Any] = {"precision": precision, "context": ["user_id", "shown_at"]}
    settings |= {"max_auc_cost": 1.0} | ({} if opset is None else {"opset": opset})
    release = released(text_job(export=settings))
    model = onnx.load(release / "model.onnx")
    versions = {each.domain: each.version for each in model.opset_import}
    assert versions[""] == (opset or 20)
    inputs = load_release(release, Scorer).graph.inputs
    assert {each.name: each.separators for each in inputs}["genres"] == ("|",)


@pytest.mark.parametrize("column", [TEXT[0], TEXT[2]])
def test_an_operator_set_that_is_too_low_is_refused_by_the_feature(column: dict[str, Any]) -> None:
    job = text_job([column], export={"opset": 18})
    with pytest.raises(
        JobError, match=rf"export\.opset: 18 is below 20, .* feature '{column['name']}'"
    ):
        released(job)


def test_a_release_without_text_keeps_the_lower_operator_set() -> None:
    release = released(text_job([TEXT[3]]))
    model = onnx.load(release / "model.onnx")
    assert {each.domain: each.version for each in model.opset_import}[""] == 18


DERIVED: dict[str, Any] = {
    "data": {
        "derive": {"twice": "user_id * 2", "thrice": "twice + user_id", "label": "click = 1"},
    },
    "features": {
        "label": "label",
        "columns": [
            {"name": "thrice", "encoder": "vocabulary"},
            {"name": "movie_id", "encoder": "vocabulary"},
        ],
    },
}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
@pytest.mark.parametrize("out", ["scored.parquet", "scored.csv"])
def test_what_stays_derived_is_derived_when_a_file_is_scored(suffix: str, out: str) -> None:
    job = text_job(**DERIVED)
    notes = check_job(job).notes
    assert len(notes) == 1
    assert "'thrice' is derived and a feature" in notes[0]
    assert "callers of the service send it, computed as twice + user_id" in notes[0]
    release = released(job)
    scorer = load_release(release, Scorer)
    assert scorer.manifest.derived == {"twice": "user_id * 2", "thrice": "twice + user_id"}
    path = f"new.{suffix}"
    frame = clicks().drop("click")
    {"parquet": frame.write_parquet, "csv": frame.write_csv, "ndjson": frame.write_ndjson}[suffix](
        path
    )
    score(release, path, Path(out))
    found = pl.read_parquet(out) if out.endswith(".parquet") else pl.read_csv(out)
    assert found.columns == [*frame.columns, "prob"]
    given = frame.with_columns(thrice=pl.col("user_id") * 3)
    expected = scorer.score(frame_to_arrays(given, scorer.graph.inputs))
    np.testing.assert_array_equal(found["prob"].to_numpy().astype(np.float32), expected)
    # Where the column is there, it counts.
    given.with_columns(thrice=pl.lit(None, pl.Int64)).write_parquet("given.parquet")
    score(release, "given.parquet", Path("given_scored.parquet"))
    assert pl.read_parquet("given_scored.parquet")["prob"].n_unique() < found["prob"].n_unique()
    frame.drop("user_id").write_parquet("less.parquet")
    with pytest.raises(
        DataError, match=r"less\.parquet, derived 'twice': column 'user_id' is not in"
    ):
        score(release, "less.parquet", Path("less_scored.parquet"))


LEAKS: dict[str, tuple[dict[str, Any], str]] = {
    "the column itself": (
        {"derive": {"liked": "rating >= 4"}},
        r"'f' reads 'rating', from which the label comes \(rating >= 4\)",
    ),
    "through another": (
        {"derive": {"stars": "rating + 0", "liked": "stars >= 4 AND user_id > 0"}},
        "'f' reads 'rating'",
    ),
    "a feature that is derived": (
        {"derive": {"liked": "rating >= 4", "half": "rating / 2"}},
        "'h' reads 'rating'",
    ),
}


@pytest.mark.parametrize("case", LEAKS)
def test_a_feature_that_reads_what_the_label_comes_from_is_refused(case: str) -> None:
    data, message = LEAKS[case]
    clicks().with_columns(rating=pl.int_range(ROWS) % 5 + 1).write_parquet("rated.parquet")
    columns: list[dict[str, Any]] = [{"name": "f", "column": "rating", "encoder": "vocabulary"}]
    if "half" in data["derive"]:
        columns = [{"name": "h", "column": "half", "encoder": "identity"}]
    sections: dict[str, Any] = {
        "data": {"source": "rated.parquet", **data},
        "features": {"label": "liked", "columns": columns},
    }
    job = text_job(**sections)
    with pytest.raises(JobError, match=message):
        prepare(job)
    assert any("features.known_before" in problem for problem in check_job(job).problems)
    sections["features"]["known_before"] = ["rating"]
    assert prepare(text_job(**sections)).statistics.splits["train"].rows > 0


WEIRD: dict[str, Any] = {
    "an offset as a zone": pa.array([0] * ROWS, pa.timestamp("ms", "+05:30")),
    "a decimal of 256 bits": pa.array([Decimal(7)] * ROWS, pa.decimal256(60, 0)),
    "a view of lists": pa.array([[1]] * ROWS, pa.list_view(pa.int64())),
    "a struct with a name twice": pa.StructArray.from_arrays(
        [pa.array([1] * ROWS), pa.array([1] * ROWS)], names=["a", "a"]
    ),
}


@pytest.mark.parametrize("kind", WEIRD)
def test_types_that_polars_lacks_stop_no_command(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    table = clicks().to_arrow().append_column("odd", WEIRD[kind])
    if kind.endswith("twice"):
        table = table.append_column("user_id", table["user_id"]).append_column("odd", WEIRD[kind])
        table = table.rename_columns([*table.column_names[:-2], "two", "two"])
    pq.write_table(table, "clicks.parquet")
    job_path, guessed = write_job(["clicks.parquet"])
    assert isinstance(guessed, Guess)
    assert "odd" in guessed.left_out or "odd" in {each["name"] for each, _ in guessed.columns}
    job = load_job(job_path, ["train.epochs=1", "model.hidden_1=[8]", "model.hidden_2=[8]"])
    assert not check_job(job).problems
    result = score(released(job), "clicks.parquet", "scored.parquet")
    assert result["rows"] == ROWS
    kept = pl.read_parquet("scored.parquet").columns
    if kind.endswith("twice"):
        assert "two" not in kept
        assert (
            "left out: clicks.parquet: column 'two': the file has 2 columns"
            in capfd.readouterr().err
        )
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_exact_ids_have_one_score_wherever_it_is_written(suffix: str) -> None:
    random = np.random.default_rng(0)
    ids = [2**53 + int(i) for i in random.integers(0, 40, ROWS)]
    label = [int(each % 2 ^ (random.random() < 0.1)) for each in ids]
    frame = pl.DataFrame({"id": ids, "click": label})
    path = f"clicks.{suffix}"
    if suffix == "csv":
        Path(path).write_text(frame.write_csv() + "7.0,1\n")
    else:
        Path(path).write_text(frame.write_ndjson() + '{"id": 7.0, "click": 1}\n')
    values = {
        "name": "ids",
        "data": {"source": path, "split": {"by": "ratio"}},
        "features": {
            "label": "click",
            "columns": [{"name": "id", "encoder": "vocabulary", "dtype": "int64"}],
        },
        "model": {"type": "logistic_regression"},
        "train": {"epochs": 3, "batch_size": 32, "sparse": {"lr": 0.1}},
    }
    release = released(parse_job(values))
    scorer = load_release(release, Scorer)
    direct = scorer.score({"id": np.array([[each] for each in [*ids, 7]], np.int64)})
    assert len(set(direct.tolist())) > 30
    for out in ("scored.parquet", "scored.csv"):
        score(release, path, out)
        found = (
            pl.read_parquet(out) if out.endswith(".parquet") else pl.read_csv(out, columns=["prob"])
        )
        np.testing.assert_array_equal(found["prob"].to_numpy().astype(np.float32), direct)
