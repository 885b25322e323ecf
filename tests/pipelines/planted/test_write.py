"""Planted data through the command: rows follow the truth that is written beside them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.pipelines import prepare
from headwater.pipelines.cli import main
from headwater.pipelines.evaluation.metrics import auc, sigmoid
from headwater.pipelines.job import load_job
from headwater.pipelines.planted import write
from headwater.pipelines.planted.config import PlantedConfig
from headwater.pipelines.planted.write import USEFUL_COUNT, write_planted

SETTINGS = {
    "rows": 60_000,
    "ids": 1000,
    "small_ids": 20,
    "useless_ids": 0.4,
    "exponent": 0.5,
    "id_effects": [0.5, 1.5],
    "valid": 0.2,
    "seed": 3,
}
FILES = ("train.parquet", "valid.parquet", "test.parquet")
TRUTH = ("cells.parquet", "ids.parquet", "truth.toml", "vectors.parquet")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the command wrote."""
    folder = tmp_path_factory.mktemp("planted") / "out"
    given = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    assert main(["datasets", "make", "planted", str(folder), *given]) == 0
    return folder


@pytest.fixture(scope="module")
def truth(planted: Path) -> dict[str, Any]:
    """Return what `truth.toml` says."""
    return tomllib.loads((planted / "truth.toml").read_text())


def logits(
    folder: Path, rows: pl.DataFrame, *, min_count: int = 0, pairs: bool = True
) -> np.ndarray:
    """Return the logit of rows, joined from the written tables, without what is seen less often."""
    ids = pl.read_parquet(folder / "ids.parquet").filter(pl.col("count") >= min(min_count, 1))
    cells = pl.read_parquet(folder / "cells.parquet").filter(pl.col("count") >= min_count)
    vectors = pl.read_parquet(folder / "vectors.parquet").join(ids, on=["column", "value"])
    logit_N = np.zeros(len(rows))
    for (column,), effects in ids.group_by("column"):
        found = rows.join(
            effects, left_on=str(column), right_on="value", how="left", maintain_order="left"
        )
        logit_N += found["effect"].fill_null(0.0).to_numpy()
    if not pairs:
        return logit_N
    for (first, second), effects in cells.group_by("first", "second"):
        found = rows.join(
            effects,
            left_on=[str(first), str(second)],
            right_on=["first_value", "second_value"],
            how="left",
            maintain_order="left",
        )
        logit_N += found["effect"].fill_null(0.0).to_numpy()
    for pair, both in vectors.group_by("first", "second"):
        sides = [
            rows.join(
                both.filter(pl.col("column") == name),
                left_on=str(name),
                right_on="value",
                how="left",
                maintain_order="left",
            )["vector"].fill_null([0.0, 0.0])
            for name in pair
        ]
        left_NK, right_NK = (np.array(side.to_list()) for side in sides)
        logit_N += (left_NK * right_NK).sum(1)
    return logit_N


def test_files_hold_the_rows_asked_for(planted: Path) -> None:
    assert {path.name for path in planted.iterdir()} == {*FILES, *TRUTH, "job.toml"}
    train, valid, test = (pl.read_parquet(planted / name) for name in FILES)
    assert (len(train), len(valid), len(test)) == (42_000, 12_000, 6_000)
    names = [
        *(f"small_{i + 1}" for i in range(5)),
        *(f"large_{i + 1}" for i in range(5)),
        "useless_1",
        "useless_2",
    ]
    assert train.schema == {"label": pl.Int8} | dict.fromkeys(names, pl.Int64)
    assert set(train["label"].unique()) == {0, 1}
    sizes = {"small": 20, "large": 129, "useless": 129}
    for name in names:
        assert train[name].is_between(0, sizes[name.partition("_")[0]] - 1).all()


def test_truth_names_settings_fields_and_pairs(truth: dict[str, Any]) -> None:
    config = PlantedConfig.model_validate(truth["settings"])
    assert config.model_dump(mode="json", include=set(SETTINGS)) == SETTINGS
    assert sum(field["ids"] for field in truth["fields"]) == 1000
    assert [field["useless_ids"] for field in truth["fields"]][:5] == [0] * 5
    useless = {
        f["name"]: f["useless_ids"] / f["ids"] for f in truth["fields"] if f["kind"] != "small"
    }
    assert useless == {
        name: pytest.approx(1.0 if name.startswith("useless") else 0.4, abs=0.01)
        for name in useless
    }
    methods = [(pair["method"], *pair["fields"]) for pair in truth["pairs"]]
    assert len(set(methods)) == 6
    for method, first, second in methods:
        kind = {"memorise": "small", "factorise": "large"}[method]
        assert first.startswith(kind)
        assert second.startswith(kind)
        assert first < second


def test_frequent_is_the_share_of_rows_in_combinations_seen_often(
    planted: Path, truth: dict[str, Any]
) -> None:
    train = pl.read_parquet(planted / "train.parquet")
    for pair in truth["pairs"]:
        counts = train.group_by(pair["fields"]).len()["len"].to_numpy()
        assert pair["frequent"] == counts[counts >= 10].sum() / len(train)
        if pair["method"] == "memorise":
            assert pair["frequent"] == 1


def test_counts_are_those_of_the_training_rows(planted: Path) -> None:
    train = pl.read_parquet(planted / "train.parquet")
    for (column,), ids in pl.read_parquet(planted / "ids.parquet").group_by("column"):
        seen = train[str(column)].to_numpy()
        count_V = np.bincount(seen, minlength=len(ids))
        assert (ids.sort("value")["count"].to_numpy() == count_V).all()
    for (first, second), cells in pl.read_parquet(planted / "cells.parquet").group_by(
        "first", "second"
    ):
        counts = train.group_by(first, second).len()
        found = cells.join(
            counts, left_on=["first_value", "second_value"], right_on=[str(first), str(second)]
        )
        assert len(found) == 400
        assert (found["count"] == found["len"]).all()


def test_labels_follow_the_written_truth_in_every_cell_and_for_every_id(planted: Path) -> None:
    rows = pl.concat(pl.read_parquet(planted / name) for name in FILES)
    prob_N = sigmoid(logits(planted, rows))
    rows = rows.with_columns(
        surprise=rows["label"].to_numpy() - prob_N, variance=prob_N * (1 - prob_N)
    )
    cells = pl.read_parquet(planted / "cells.parquet")
    pairs = [[*pair] for pair in cells.select("first", "second").unique().rows()]
    ids = pl.read_parquet(planted / "ids.parquet")
    for columns in [*pairs, *([name] for name in ids["column"].unique())]:
        sums = rows.group_by(columns).agg(pl.col("surprise", "variance").sum())
        square = (sums["surprise"] ** 2 / sums["variance"]).sum()
        assert abs(square - len(sums)) < 5 * np.sqrt(2 * len(sums)), columns
    for first, second in pairs:
        signs = cells.filter((pl.col("first") == first) & (pl.col("second") == second))
        joined = rows.join(signs, left_on=[first, second], right_on=["first_value", "second_value"])
        rate = joined.group_by(pl.col("effect") > 0).agg(pl.col("label").mean()).sort("effect")
        assert rate["label"][1] - rate["label"][0] > 0.2


def test_stated_auc_is_that_of_the_written_truth(planted: Path, truth: dict[str, Any]) -> None:
    test = pl.read_parquet(planted / "test.parquet")
    label_N = test["label"].cast(pl.UInt8).to_numpy()
    reached = {
        "bayes": auc(label_N, logits(planted, test)),
        "planted": auc(label_N, logits(planted, test, min_count=10)),
        "ids": auc(label_N, logits(planted, test, pairs=False)),
    }
    assert reached == pytest.approx(truth["auc"], abs=1e-9)
    assert truth["auc"]["bayes"] > truth["auc"]["ids"] + 0.03


def test_rarely_seen_combinations_cost_the_planted_architecture(tmp_path: Path) -> None:
    made = write_planted(tmp_path / "out", PlantedConfig(rows=20_000, factorised=0))
    assert made.auc["ids"] + 0.05 < made.auc["planted"] < made.auc["bayes"] - 0.02
    test = pl.read_parquet(made.folder / "test.parquet")
    label_N = test["label"].cast(pl.UInt8).to_numpy()
    reached = auc(label_N, logits(made.folder, test, min_count=10))
    assert made.auc["planted"] == pytest.approx(reached, abs=1e-9)


def test_useful_ids_are_strong_and_frequent_and_useless_ones_have_no_effect(planted: Path) -> None:
    ids = pl.read_parquet(planted / "ids.parquet")
    strong = (pl.col("size") >= 1) & (pl.col("count") >= USEFUL_COUNT)
    assert (ids.filter(pl.col("useful"))["size"] >= 1).all()
    assert (ids.filter(strong)["useful"] == True).all()  # noqa: E712
    useless = ids.filter(~pl.col("useful"))
    assert not useless.select("size", "effect").to_numpy().any()
    assert (ids.filter(pl.col("size") == 0)["useful"] == False).all()  # noqa: E712
    assert ids["useful"].is_null().any()
    assert ids.filter(pl.col("column").str.starts_with("useless"))["size"].max() == 0


def test_rows_do_not_depend_on_the_chunk(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "CHUNK", 777)
    folder = write_planted(tmp_path / "out", PlantedConfig.model_validate(SETTINGS)).folder
    for name in FILES:
        assert pl.read_parquet(folder / name).equals(pl.read_parquet(planted / name))
    for name in TRUTH:
        assert (folder / name).read_bytes() == (planted / name).read_bytes()


def test_same_seed_same_bytes_and_another_seed_another_truth(planted: Path, tmp_path: Path) -> None:
    config = PlantedConfig.model_validate(SETTINGS)
    same = write_planted(tmp_path / "same", config).folder
    for name in (*FILES, *TRUTH):
        assert (same / name).read_bytes() == (planted / name).read_bytes(), name
    other = write_planted(tmp_path / "other", config.model_copy(update={"seed": 4})).folder
    for name in (*FILES, *TRUTH):
        assert (other / name).read_bytes() != (planted / name).read_bytes(), name


def test_noise_lowers_the_auc_that_can_be_reached(tmp_path: Path) -> None:
    config = PlantedConfig(rows=20_000)
    plain = write_planted(tmp_path / "plain", config)
    noisy = write_planted(tmp_path / "noisy", config.model_copy(update={"noise": 2.0}))
    assert noisy.auc["bayes"] < plain.auc["bayes"] - 0.03


def test_same_settings_again_change_nothing(planted: Path, truth: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in planted.iterdir()}
    again = write_planted(planted, PlantedConfig.model_validate(SETTINGS))
    assert again.job == planted / "job.toml"
    assert again.auc == truth["auc"]
    assert {path: path.stat().st_mtime_ns for path in planted.iterdir()} == before


def test_folder_of_something_else_is_refused(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (planted / "truth.toml").read_bytes()
    for folder in (planted, tmp_path):
        assert main(["datasets", "make", "planted", str(folder)]) == 2
        assert f"{folder}: exists already" in capsys.readouterr().err
    assert (planted / "truth.toml").read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> pl.DataFrame:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_vectors", full)
    out = str(tmp_path / "deep" / "out")
    assert main(["datasets", "make", "planted", out, "--set", "rows=1000"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_result_is_json_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["datasets", "make", "planted", str(out), "--set", "rows=1000", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["job"] == str(out / "job.toml")
    assert result["rows"] == {"train": 800, "valid": 100, "test": 100}
    assert set(result["auc"]) == {"bayes", "planted", "ids"}


def test_job_is_valid_and_prepares_from_any_folder(
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    job = planted / "job.toml"
    assert main(["validate", str(job), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["features"]) == 12
    prepared = prepare(load_job(job), tmp_path / "prepared")
    # Every value of these few is seen, beside missing and unknown.
    sizes = {column.name: column.cardinality for column in prepared.schema.columns}
    assert sizes["small_1"] == 22
    assert sizes["large_1"] == 131
