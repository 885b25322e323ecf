"""`headwater score`: a file's rows with the graph's numbers, in bounded memory, without torch."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import DataError, InputError, OutputError, ReleaseError
from headwater.pipelines.release.parity import torch_scores
from headwater.pipelines.scoring.score import frame_to_arrays, score
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import SCORE
from headwater.serving.release import load_release, read_manifest
from headwater.serving.signature import columns_to_arrays

SCALARS = ["user", "city", "price", "ts"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, export_clicks: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    return export_clicks(folder, "fm", settings={"embedding_dim": 4})


@pytest.fixture(scope="module")
def scalar_release(
    tmp_path_factory: pytest.TempPathFactory,
    click_schema: fs.Schema,
    export_clicks: Callable[..., Path],
) -> Path:
    """Return a release without lists, which CSV cannot hold."""
    schema = fs.Schema(
        raw=tuple(column for column in click_schema.raw if column.name in SCALARS),
        columns=tuple(c for c in click_schema.columns if c.name not in ("tags", "seen")),
    )
    folder = tmp_path_factory.mktemp("releases")
    return export_clicks(folder, "fm", schema=schema, settings={"embedding_dim": 4})


def graph_scores(release: Path, rows: pl.DataFrame) -> np.ndarray:
    scorer = load_release(release, Scorer)
    return scorer.score(frame_to_arrays(rows, scorer.graph.inputs))


@pytest.mark.parametrize("batch_rows", [1, 7, 1_000_000])
def test_parquet_rows_get_the_scores_of_the_graph(
    batch_rows: int, release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows[:50].with_row_index("request")
    rows.write_parquet(tmp_path / "rows.parquet")
    result = score(
        release, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet", batch_rows=batch_rows
    )
    scored = pl.read_parquet(tmp_path / "out.parquet")
    assert result["rows"] == len(scored) == 50
    assert result["release"] == "clicks/1"
    assert scored.columns == [*rows.columns, "prob"]
    assert scored["request"].to_list() == list(range(50))
    assert scored["tags"].to_list() == rows["tags"].to_list()
    np.testing.assert_allclose(scored["prob"], graph_scores(release, rows), atol=1e-7, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.parquet"]


def test_scores_are_those_of_the_network(
    release: Path,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    tmp_path: Path,
) -> None:
    click_rows.write_parquet(tmp_path / "rows.parquet")
    score(release, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet")
    expected = torch_scores(make_network("fm", embedding_dim=4), click_schema, click_rows, 1.0)
    np.testing.assert_allclose(
        pl.read_parquet(tmp_path / "out.parquet")["prob"], expected, atol=2e-6, rtol=0
    )


def test_tensors_are_those_that_the_service_makes(release: Path, click_rows: pl.DataFrame) -> None:
    inputs = read_manifest(release).graphs[SCORE].inputs
    found = frame_to_arrays(click_rows, inputs)
    expected = columns_to_arrays(inputs, click_rows.to_dict(as_series=False))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array)


def test_row_whose_score_is_no_number_is_named(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    is_fifth = pl.int_range(pl.len()) == 4
    rows = click_rows.head(9).with_columns(price=pl.when(is_fifth).then(1e300).otherwise("price"))
    rows.write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(
        InputError, match=r"rows\.parquet, row 5: no finite score: .* in 'price', 1e\+300"
    ):
        score(release, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet", batch_rows=2)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
def test_text_files_score_as_typed_ones(
    suffix: str, out: str, scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows.select(*SCALARS, note=pl.lit('007, "x"'))
    source = tmp_path / f"rows.{suffix}"
    rows.write_csv(source) if suffix == "csv" else rows.write_ndjson(source)
    score(scalar_release, str(source), tmp_path / out)
    if out.endswith("csv"):
        scored = pl.read_csv(tmp_path / out, infer_schema_length=None)
    else:
        scored = pl.read_parquet(tmp_path / out)
    assert scored["note"].to_list() == ['007, "x"'] * len(rows)
    np.testing.assert_allclose(
        scored["prob"], graph_scores(scalar_release, rows), atol=1e-7, rtol=0
    )


def test_text_that_looks_like_a_number_stays_text(
    scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows.head(4).with_columns(city=pl.Series(["007", "7", "1.0", None]))
    rows.select(SCALARS).write_csv(tmp_path / "rows.csv")
    score(scalar_release, str(tmp_path / "rows.csv"), tmp_path / "out.csv")
    scored = pl.read_csv(tmp_path / "out.csv", schema_overrides={"city": pl.String})
    assert scored["city"].to_list() == ["007", "7", "1.0", None]
    np.testing.assert_allclose(
        scored["prob"], graph_scores(scalar_release, rows), atol=1e-7, rtol=0
    )


TIMES = ["2026-03-15T18:30:00", "2026-03-15 18:30", "1773599400000", "", "2026-03-15T18:30:00.5Z"]
TIMES_MS = [1773599400000, 1773599400000, 1773599400000, None, 1773599400500]


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
def test_times_may_be_text_or_milliseconds_in_any_mixture(
    suffix: str, out: str, scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows.select(SCALARS).head(5)
    source = tmp_path / f"rows.{suffix}"
    text = rows.with_columns(ts=pl.Series(TIMES))
    text.write_csv(source) if suffix == "csv" else text.write_ndjson(source)
    score(scalar_release, str(source), tmp_path / out)
    read = pl.read_csv if out.endswith("csv") else pl.read_parquet
    expected = graph_scores(scalar_release, rows.with_columns(ts=pl.Series(TIMES_MS)))
    np.testing.assert_allclose(read(tmp_path / out)["prob"], expected, atol=1e-7, rtol=0)


def test_csv_to_csv_keeps_every_field_as_it_is_written(
    scalar_release: Path, tmp_path: Path
) -> None:
    lines = [
        "user,city,price,ts,clicked,amount,at",
        "7,Paris,49,2026-03-15T18:30:00,1,007.50,2026-03-15",
        '8,"a, b",1e1,2026-03-15 18:30,0,1.0,2026-03-15T18:30Z',
        "9.0,,,1773599400000,true,,",
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    score(scalar_release, str(tmp_path / "rows.csv"), tmp_path / "out.csv")
    found = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in found] == lines
    assert found[0].endswith(",prob")


def test_csv_to_parquet_gives_columns_their_types(scalar_release: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "user,city,price,ts,clicked,amount,at,code\n"
        "7,75,49,2026-03-15T18:30:00,1,0.5,2026-03-15,007\n"
        "8,,,2026-03-15T18:30:00,0,,2026-03-16,9\n"
    )
    score(scalar_release, str(tmp_path / "rows.csv"), tmp_path / "out.parquet")
    assert dict(pl.read_parquet(tmp_path / "out.parquet").schema) == {
        "user": pl.Int64,
        "city": pl.String,
        "price": pl.Int64,
        "ts": pl.Datetime("us"),
        "clicked": pl.Int64,
        "amount": pl.Float64,
        "at": pl.Datetime("us"),
        "code": pl.String,
        "prob": pl.Float32,
    }


def test_parquet_keeps_types_and_values(
    scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows.select(SCALARS).head(2)
    rows = rows.with_columns(
        pl.col("price").cast(pl.Float32),
        count=pl.Series([1, 2], dtype=pl.UInt8),
        money=pl.Series(["0.10", "12345678901234567.89"]).cast(pl.Decimal(20, 2)),
        at=pl.Series([1, 2]).cast(pl.Datetime("ns", "UTC")),
        kind=pl.Series(["a", "b"], dtype=pl.Categorical),
        pair=pl.Series([{"a": 1}, {"a": 2}]),
        vector=pl.Series([[1.0, 2.0], [3.0, 4.0]], dtype=pl.Array(pl.Float32, 2)),
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    score(scalar_release, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet")
    found = pl.read_parquet(tmp_path / "out.parquet").drop("prob")
    assert found.schema == rows.schema
    assert found.equals(rows)


def test_parquet_files_that_disagree_are_widened(
    scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    for name, dtype in {"a": pl.UInt8, "b": pl.Int16}.items():
        rows = click_rows.select(SCALARS).head(1).with_columns(count=pl.lit(7, dtype=dtype))
        rows.write_parquet(tmp_path / f"{name}.parquet")
    score(scalar_release, str(tmp_path / "*.parquet"), tmp_path / "out.parquet")
    count = pl.read_parquet(tmp_path / "out.parquet")["count"]
    assert count.dtype == pl.Int64
    assert count.to_list() == [7, 7]


def test_a_model_folder_means_its_highest_version(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    for version in ("9", "10"):
        shutil.copytree(release, model / version)
    (model / "11").mkdir()
    (model / "10" / "model.onnx").write_bytes(b"not a graph")
    click_rows.write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ReleaseError, match=r"10/model\.onnx"):
        score(model, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet")
    shutil.rmtree(model / "10")
    assert score(model, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet")["rows"] == 300


BAD = {
    "a code": ("user", "b73", r"'b73', expected int64: .* \(a time: ISO 8601 or milliseconds, UTC\)"),
    "no time": ("ts", "yesterday", r"'yesterday', expected int64: .* \(a time"),
    "a fraction": ("user", "7.5", r"'?7\.5'?, expected int64"),
    "beyond 64 bits": ("user", "9223372036854775808", "'9223372036854775808', expected int64"),
    "no number": ("price", "cheap", r"'cheap', expected double: a number\. Correct the value"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
@pytest.mark.parametrize(("column", "value", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_text_is_named_with_its_row(
    column: str,
    value: str,
    message: str,
    suffix: str,
    out: str,
    scalar_release: Path,
    click_rows: pl.DataFrame,
    tmp_path: Path,
) -> None:
    good = {"user": "7", "price": "1.5", "ts": "2026-03-15T18:30:00"}[column]
    values = [None, good, value, value, good]
    rows = click_rows.select(SCALARS).head(5).with_columns(pl.Series(column, values))
    source = tmp_path / f"rows.{suffix}"
    rows.write_csv(source) if suffix == "csv" else rows.write_ndjson(source)
    with pytest.raises(
        DataError, match=f"rows.{suffix}, row 3, column '{column}': found {message}"
    ):
        score(scalar_release, str(source), tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_fraction_for_an_integer_is_named_with_its_row(
    scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows.select(SCALARS).head(3).with_columns(user=pl.Series([1.0, 2.0, 3.5]))
    refused(
        scalar_release,
        rows,
        tmp_path,
        r"row 3, column 'user': found 3\.5, expected int64: an integer",
    )


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_a_release_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="expected a release"):
        score(tmp_path / folder, "rows.parquet", tmp_path / "out.parquet")


def refused(
    release: Path, rows: pl.DataFrame, tmp_path: Path, message: str, out: str = "out.parquet"
) -> None:
    rows.write_parquet(tmp_path / "rows.parquet")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):
        score(release, str(tmp_path / "rows.parquet"), tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_column_is_named(release: Path, click_rows: pl.DataFrame, tmp_path: Path) -> None:
    refused(release, click_rows.rename({"price": "prices"}), tmp_path, "'price'.*'prices'")


def test_a_column_named_as_the_score_is_refused(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    refused(release, click_rows.with_columns(prob=0.5), tmp_path, "'prob'.*rename")


def test_a_value_of_the_wrong_type_is_named_and_nothing_is_written(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows = click_rows.with_columns(price=pl.lit("N/A"))
    refused(release, rows, tmp_path, "column 'price'.*N/A")


def test_an_unknown_suffix_is_refused(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    refused(release, click_rows, tmp_path, r"\.parquet or \.csv", out="out.xlsx")


def test_lists_cannot_be_written_to_csv(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    refused(release, click_rows, tmp_path, "'tags'.*parquet", out="out.csv")


@pytest.mark.parametrize("out", ["out.parquet", "out.csv"])
def test_a_full_disk_keeps_the_old_file(
    out: str, scalar_release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    click_rows.select(SCALARS).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / out).write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OutputError, match=out):
            score(scalar_release, str(tmp_path / "rows.parquet"), tmp_path / out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / out).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out, "rows.parquet"])


NO_TORCH = """
import sys
from pathlib import Path
from headwater.pipelines.scoring.score import score
score(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
assert not {"torch", "torchrec", "onnx"} & set(sys.modules), "loaded"
"""


def test_scoring_loads_neither_torch_nor_onnx(
    release: Path, click_rows: pl.DataFrame, tmp_path: Path
) -> None:
    click_rows.write_parquet(tmp_path / "rows.parquet")
    arguments = [str(release), str(tmp_path / "rows.parquet"), str(tmp_path / "out.parquet")]
    subprocess.run([sys.executable, "-c", NO_TORCH, *arguments], check=True)


def test_no_rows_give_no_scores(release: Path, click_rows: pl.DataFrame, tmp_path: Path) -> None:
    click_rows.head(0).write_parquet(tmp_path / "rows.parquet")
    assert score(release, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet")["rows"] == 0
    assert pl.read_parquet(tmp_path / "out.parquet").columns == [*click_rows.columns, "prob"]
