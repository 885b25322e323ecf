"""From raw logs to answers over HTTP by the real commands, and one number for a row on all the ways."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from headwater.pipelines.cli import main
from headwater.pipelines.datasets import cache_folder

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ["finalmlp-fused", "finalmlp-dense", "deepfm-lazy", "deepfm-dense"]
SAME = 1e-6
"""Difference that two ways to the same graph may show."""
PARITY = 1e-5
"""The job's tolerance between torch and the graph."""

Headwater = Callable[..., tuple[dict[str, Any], str]]
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def released(variant: str, made: Callable[[str], Any]) -> Any:
    return made(variant)


@pytest.fixture(scope="module")
def address(shop: Any, made: Callable[[str], Any], serving: Callable[..., Any]) -> Iterator[str]:
    """Serve one release; the service finds the others by itself."""
    made(VARIANTS[0])
    with serving(shop.path / "releases") as url:
        yield url


@pytest.fixture(scope="module")
def offline(
    released: Any, in_process: Headwater, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[pl.DataFrame], NDArray[np.float32]]:
    """Give a function from raw rows to what `headwater score` says of them."""

    def score(rows: pl.DataFrame) -> NDArray[np.float32]:
        folder = tmp_path_factory.mktemp("offline")
        rows.write_parquet(folder / "in.parquet")
        result, _ = in_process(
            "score", released.release, folder / "in.parquet", folder / "out.parquet", cwd=folder
        )
        assert result["rows"] == rows.height
        scored = pl.read_parquet(folder / "out.parquet")
        assert scored.columns == [*rows.columns, "prob"]
        return scored["prob"].to_numpy()

    return score


def test_logs_become_a_first_job_that_runs(
    shop: Any,
    in_process: Headwater,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "events.parquet").write_bytes((shop.path / "events.parquet").read_bytes())
    written, _ = in_process("init", "events.parquet", cwd=tmp_path)
    assert written["job"] == "events.toml"
    assert {"user_id", "item_id", "query", "price", "tags"} <= set(written["features"])
    assert not {"rating", written["label"]} & set(written["features"])
    shown, _ = in_process("validate", "events.toml", cwd=tmp_path)
    dtypes = {each["input"]: each["dtype"] for each in shown["inputs"]}
    assert dtypes["price"] == "double"
    assert dtypes["query"] == "string"
    monkeypatch.chdir(tmp_path)
    assert main(["run", "events.toml", "--set", "train.epochs=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["metrics"]["test"]["auc"] > 0.6
    assert (tmp_path / result["release"] / "model.onnx").is_file()


def test_validate_shows_what_the_release_will_take_in(shop: Any, in_process: Headwater) -> None:
    shown, _ = in_process("validate", shop.job, cwd=shop.path)
    found = {each["input"]: (each["dtype"], each["shape"]) for each in shown["inputs"]}
    assert found == {
        "user_id": ("int64", "scalar"),
        "item_id": ("int64", "scalar"),
        "query": ("string", "scalar"),
        "price": ("double", "scalar"),
        "age": ("double", "scalar"),
        "country": ("string", "scalar"),
        "genres": ("int64", "list"),
        "tags": ("string", "list"),
        "ts": ("int64", "scalar"),
    }


def test_run_finds_the_planted_signal_and_reports_it(released: Any) -> None:
    for split in ("valid", "test"):
        metrics = released.result["metrics"][split]
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["auc"] > 0.85
        assert metrics["gauc"] > 0.8
        assert metrics["logloss"] < 0.5
    assert released.result["rows_per_second"] > 0
    assert released.result["peak_rss_mb"] > 0
    training = json.loads((released.run / "metrics.json").read_text())["training"]
    last = training["best_epoch"] == training["epochs"]
    assert released.result["stopped"] == training["stopped"]
    assert released.result["still_improving"] is training["still_improving"] is last
    assert {"job.toml", "metrics.json", "checkpoint", "log.jsonl", "report.html"} <= {
        each.name for each in released.run.iterdir()
    }


def test_report_needs_no_other_file(released: Any) -> None:
    page = (released.run / "report.html").read_text()
    links = re.findall(r"""(?:src|href|data|action)\s*=\s*["']([^"']*)""", page)
    links += re.findall(r"""url\(\s*["']?([^"')]*)""", page)
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert "@import" not in page
    assert "<link" not in page
    assert f"{released.result['metrics']['test']['auc']:.4f}"[:5] in page


def test_release_gives_the_numbers_that_torch_gave(
    shop: Any, released: Any, offline: Callable[[pl.DataFrame], NDArray[np.float32]]
) -> None:
    # The run kept the logits of its test rows, which torch computed from encoded shards; the release
    # takes the same rows raw, joined here.
    logit = np.load(released.run / "scores" / "test.logit.npy").astype(np.float64)
    label = (shop.joined["rating"] >= 4).to_numpy()
    prob = offline(shop.joined)
    np.testing.assert_allclose(prob, 1 / (1 + np.exp(-logit)), rtol=0, atol=PARITY)
    metrics = released.result["metrics"]["test"]
    assert roc_auc_score(label, logit) == pytest.approx(metrics["auc"], abs=1e-6)
    assert log_loss(label, prob) == pytest.approx(metrics["logloss"], abs=1e-5)


def test_rank_answers_with_the_offline_scores(
    shop: Any,
    variant: str,
    released: Any,
    offline: Callable[[pl.DataFrame], NDArray[np.float32]],
    address: str,
    ask: Ask,
    wait_ready: Callable[[str], None],
) -> None:
    wait_ready(f"{address}/v2/models/{variant}/ready")
    context = ["user_id", "age", "country", "ts"]
    candidate = ["item_id", "query", "price", "tags", "genres"]
    rows = shop.joined.with_columns(pl.col("ts").dt.timestamp("ms"), pl.col("price").fill_nan(None))
    expected = offline(
        pl.concat(
            rows[[who]].select(context).join(rows[60:80].select(candidate), how="cross")
            for who in range(5)
        )
    ).reshape(5, 20)
    assert np.ptp(expected, axis=0).min() > 0
    for who in range(5):
        body = {
            "model": variant,
            "context": rows.select(context).row(who, named=True),
            "candidates": rows[60:80].select(candidate).to_dicts(),
        }
        status, answer = ask(f"{address}/v1/rank", body)
        assert (status, answer["model"]) == (200, variant)
        np.testing.assert_allclose(answer["scores"], expected[who], rtol=0, atol=SAME)


def test_open_inference_protocol_answers_with_the_offline_scores(
    shop: Any,
    variant: str,
    released: Any,
    offline: Callable[[pl.DataFrame], NDArray[np.float32]],
    address: str,
    ask: Ask,
    wait_ready: Callable[[str], None],
) -> None:
    wait_ready(f"{address}/v2/models/{variant}/ready")
    rows = shop.joined.tail(200)
    status, about = ask(f"{address}/v2/models/{variant}")
    assert status == 200
    body = {"inputs": [tensor(each, rows) for each in about["inputs"]]}
    status, answer = ask(f"{address}/v2/models/{variant}/infer", body)
    assert status == 200, answer
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("prob", "FP32", [200])
    np.testing.assert_allclose(output["data"], offline(rows), rtol=0, atol=SAME)


def test_missing_and_unseen_values_are_counted_and_scored(
    shop: Any, released: Any, offline: Callable[[pl.DataFrame], NDArray[np.float32]]
) -> None:
    prepared = json.loads((released.run / "metrics.json").read_text())["prepared"]
    counts = json.loads((Path(prepared) / "statistics.json").read_text())["splits"]["test"]
    columns = counts["columns"]
    price = shop.joined["price"]
    assert columns["price"]["missing"] == (price.is_null() | price.is_nan()).sum()
    assert columns["age"]["missing"] == shop.joined["age"].null_count() > 0
    assert columns["query"]["missing"] == shop.joined["query"].null_count() > 0
    known = pl.read_parquet(shop.path / "events.parquet").head(2400)["item_id"].implode()
    unseen = (~shop.joined["item_id"].is_in(known)).sum()
    assert columns["item_id"]["unknown"] >= unseen > 0
    report = (released.run / "report.html").read_text()
    assert "missing" in report.lower()
    nothing = shop.joined.head(1).select(
        pl.lit(None, dtype).alias(n) for n, dtype in shop.joined.schema.items()
    )
    assert 0 < offline(nothing)[0] < 1


def test_tour_of_the_python_api_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # From the cache of data sets, which the first run fills from the package index.
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "movielens.py"), run_name="__main__")
    assert cache_folder().joinpath("ml-100k").is_dir()
    scored = pl.read_parquet(tmp_path / "scored.parquet")
    assert scored["prob"].is_between(0, 1).all()
    (aucs,) = re.findall(r"\{'valid': ([\d.]+), 'test': ([\d.]+)\}", capsys.readouterr().out)
    assert min(map(float, aucs)) > 0.65


def tensor(about: dict[str, Any], rows: pl.DataFrame) -> dict[str, Any]:
    """Return an input of an infer request: null where missing, lists padded beside their lengths."""
    name = about["name"]
    values: list[Any]
    if name.endswith(".length"):
        values = rows[name.removesuffix(".length")].list.len().fill_null(0).to_list()
        shape = [len(values), 1]
    elif isinstance(rows.schema[name], pl.List):
        lists = [each or [] for each in rows[name].to_list()]
        longest = max(map(len, lists))
        values = [[*each, *[None] * (longest - len(each))] for each in lists]
        shape = [len(values), longest]
    else:
        column = rows[name]
        if column.dtype == pl.Datetime:
            column = column.dt.timestamp("ms")
        values = column.to_list() if column.dtype != pl.Float64 else column.fill_nan(None).to_list()
        shape = [len(values), 1]
    return {"name": name, "datatype": about["datatype"], "shape": shape, "data": values}
