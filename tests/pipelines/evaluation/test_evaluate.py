"""Evaluation of a run: files, agreement with scikit-learn, importance, gates, and errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import RunError, ShardError
from headwater.models.batch import Batch
from headwater.models.network import Network
from headwater.models.placement.place import Placement
from headwater.pipelines.evaluation import metrics
from headwater.pipelines.evaluation.evaluate import evaluate
from headwater.pipelines.evaluation.importance import gate_values, permutation_importance
from headwater.pipelines.evaluation.records import (
    ClickEvaluation,
    ClickSplit,
    DataSummary,
    GroupCounts,
    Roc,
)
from headwater.pipelines.evaluation.scores import Scores, ScoreWriter, join_parts
from headwater.pipelines.evaluation.summary import name_code, summarise
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.reporting.report import read_evaluation
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import METRICS, Run, create_run, open_run
from headwater.pipelines.runs.trained import load_trained
from headwater.pipelines.training.train import train

pytestmark = pytest.mark.timeout(120)  # the first use of TorchRec in a process takes long


@pytest.fixture(scope="module")
def run(
    tiny_job: Callable[..., Job], tiny_prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Train a run, and evaluate it once."""
    trained = train(tiny_job(epochs=6), tiny_prepared, runs=tmp_path_factory.mktemp("runs"))
    evaluate(trained)
    return trained


def test_metrics_are_scikit_learns_on_the_kept_scores(run: Run, tiny_prepared: Prepared) -> None:
    found = run.metrics
    for split in ("valid", "test"):
        scores = Scores.open(run.scores, split)
        data = tiny_prepared.dataset(split)
        np.testing.assert_array_equal(scores.label_N, data.arrays(0).label)
        label, prob = scores.label_N, metrics.sigmoid(scores.logit_N)
        assert found.metrics[split]["auc"] == pytest.approx(roc_auc_score(label, prob), abs=1e-12)
        assert found.metrics[split]["logloss"] == pytest.approx(log_loss(label, prob), rel=1e-9)
        assert (found.metrics[split]["gauc"] or 0.0) > 0.55
        assert (found.metrics[split]["auc"] or 0.0) > 0.7


def test_validation_metrics_are_those_of_the_best_epoch(run: Run) -> None:
    found = run.metrics
    best = found.history[found.training.best_epoch - 1]
    assert found.metrics["valid"] == pytest.approx(best.valid, rel=1e-6)


def test_evaluating_again_gives_the_same_file(run: Run) -> None:
    before = (run.path / "evaluation.json").read_bytes()
    evaluate(open_run(run.path))
    assert (run.path / "evaluation.json").read_bytes() == before


def test_trained_network_is_loaded_without_what_made_it_learn(
    run: Run, tiny_prepared: Prepared
) -> None:
    placement = load_trained(run, tiny_prepared, torch.device("cpu"))
    assert type(placement) is Placement
    saved = Checkpoints(run.checkpoint).load("best")
    assert saved is not None
    weights = placement.weights()
    assert weights.keys() == saved["network"]["weights"].keys()
    for name, weight in saved["network"]["weights"].items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.slow
def test_fresh_process_evaluates_without_importing_torchs_compiler(run: Run) -> None:
    # Making an optimiser imports it, which takes longer than all else of a small evaluation.
    code = (
        "import sys; from headwater.pipelines import evaluate; evaluate(sys.argv[1]); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run.path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_evaluation_holds_what_the_report_draws(run: Run, tiny_prepared: Prepared) -> None:
    found, _ = read_evaluation(run.path)
    assert isinstance(found, ClickEvaluation)
    assert (found.name, found.model) == ("tiny", "finalmlp")
    assert found.training.epochs == len(found.history)
    rows = {split: len(tiny_prepared.dataset(split)) for split in tiny_prepared.splits}
    assert found.data == DataSummary(rows=rows, time_range_ms=None)
    columns = [column.name for column in tiny_prepared.schema.columns]
    for split in ("valid", "test"):
        part = found.splits[split]
        rows = len(tiny_prepared.dataset(split))
        assert part.rows == rows
        assert sum(part.histogram.negative) + part.positives == rows
        assert sum(row.rows for row in part.calibration_bins) == rows
        assert len(part.histogram.edges) == 51
        assert part.roc.fpr[0] == part.roc.tpr[0] == 0
        assert part.groups is not None
        assert part.groups.used + part.groups.skipped == 40
        low, high = part.intervals["auc"] or (0.0, 0.0)
        assert low < (part.metrics["auc"] or 0.0) < high
        colours = [row for row in part.slices if row.column == "colour"]
        assert {row.value for row in colours} == {"red", "green", "blue"}
        assert sum(row.rows for row in colours) == rows
    assert found.importance is not None
    drops = {row.column: row.auc_drop or 0.0 for row in found.importance.columns}
    assert list(drops) == columns
    assert min(drops["user"], drops["item"], drops["price"]) > 0.03
    assert max(abs(drops["colour"]), abs(drops["tags"])) < 0.03
    rates = {(row.column, row.split): row for row in found.rates}
    assert rates["tags", "train"].missing > 0.1
    assert rates["price", "valid"].unknown is None
    assert [(row.gate, row.column) for row in found.gates] == [
        (gate, column) for gate in ("gate_1", "gate_2") for column in columns
    ]
    assert all(0 < row.mean < 2 for row in found.gates)


def test_unfinished_run_and_lost_data_are_refused_with_the_remedy(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Training has not ended"):
        evaluate(create_run(run.job, tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    found = open_run(copy)
    shutil.rmtree(found.checkpoint)
    with pytest.raises(RunError, match="no checkpoint yet"):
        evaluate(found)
    found.write(METRICS, replace(run.metrics, prepared=str(tmp_path / "gone")))
    with pytest.raises(ShardError, match="gone"):
        evaluate(found)


@pytest.mark.parametrize("splits", [("test",), ("valid",)])
def test_corrupt_validation_shard_is_refused_whatever_the_splits(
    run: Run, tiny_prepared: Prepared, tmp_path: Path, splits: tuple[SplitName, ...]
) -> None:
    spoiled, copy = tmp_path / "prepared", tmp_path / "run"
    shutil.copytree(tiny_prepared.path, spoiled)
    shutil.copytree(run.path, copy)
    shard = spoiled / "valid" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = open_run(copy)
    found.write(METRICS, replace(run.metrics, prepared=str(spoiled)))
    with pytest.raises(ShardError, match=r"valid/shard-00000\.arrow: the shard is corrupt"):
        evaluate(found, splits)


def test_parts_of_ranks_are_joined_in_their_order(tmp_path: Path) -> None:
    for rank, size in enumerate((3, 0, 2)):
        with ScoreWriter(tmp_path, "valid", rank=rank) as writer:
            if size:
                writer.add(
                    logit=np.full(size, rank, np.float32),
                    label=np.ones(size, np.float32),
                    slices=np.full((size, 2), rank, np.int32),
                    group=None,
                )
    scores = join_parts(tmp_path, "valid", num_slices=2, world_size=3)
    assert scores.logit_N.tolist() == [0, 0, 0, 2, 2]
    assert scores.slices_NS.tolist() == [[0, 0]] * 3 + [[2, 2]] * 2
    assert scores.group_N is None
    assert len(list(tmp_path.iterdir())) == 3


def test_scores_without_slice_columns_or_of_one_class_are_summarised(tmp_path: Path) -> None:
    with ScoreWriter(tmp_path, "test") as writer:
        writer.add(
            logit=np.zeros(4, np.float32),
            label=np.ones(4, np.float32),
            slices=np.empty((4, 0), np.int32),
            group=np.arange(4),
        )
    found = summarise(join_parts(tmp_path, "test", num_slices=0), [])
    assert np.isnan(found.metrics["auc"] or 0.0)
    assert np.isnan(found.metrics["gauc"] or 0.0)
    assert found.metrics["logloss"] == pytest.approx(np.log(2))
    assert found.groups == GroupCounts(used=0, skipped=4, rows_used=0, rows_missing=0)
    assert found.intervals["auc"] is None
    assert found.roc == Roc(fpr=[], tpr=[])
    assert [row.rows for row in found.calibration_bins] == [4]
    assert found.slices == []


def test_rows_without_a_group_are_in_no_group_and_are_counted(tmp_path: Path) -> None:
    logit = np.array([0, 1, 2, 3, 9, 8, 7], np.float32)
    label = np.array([0, 1, 1, 0, 0, 1, 1], np.uint8)
    group = np.array([5, 5, 6, 6, *[fs.INT64_MIN] * 3])

    def summary(name: str, rows: slice) -> ClickSplit:
        with ScoreWriter(tmp_path, name) as writer:
            writer.add(
                logit=logit[rows],
                label=label[rows],
                slices=np.empty((len(label[rows]), 0), np.int32),
                group=group[rows],
            )
        return summarise(join_parts(tmp_path, name, num_slices=0), [])

    found = summary("test", slice(None))
    assert found.rows == 7
    assert found.metrics["gauc"] == 0.5
    assert found.groups == GroupCounts(used=2, skipped=0, rows_used=4, rows_missing=3)
    alone = summary("valid", slice(4, None))
    assert np.isnan(alone.metrics["gauc"] or 0.0)
    assert alone.groups == GroupCounts(used=0, skipped=0, rows_used=0, rows_missing=3)


def test_importance_is_the_drop_of_the_columns_that_decide(click_schema: fs.Schema) -> None:
    sample = _sample(click_schema, rows=2000)
    place = {column.name: place for column, place in click_schema.code_places()}["city"]

    def logits(batch: Batch) -> torch.Tensor:
        return batch.codes_BW[:, place].sum(1) + 20 * batch.dense_BD[:, 0]

    label = (logits(sample) > logits(sample).median()).float()
    sample = Batch(sample.codes_BW, sample.dense_BD, label)
    found = permutation_importance(logits, sample, click_schema, split="valid", seed=1)
    assert found is not None
    assert found.auc == 1.0
    drops = {row.column: row.auc_drop or 0.0 for row in found.columns}
    assert drops["price_z"] > drops["city"] > 0.05
    assert {name for name, drop in drops.items() if drop} == {"price_z", "city"}
    assert permutation_importance(logits, sample, click_schema, split="valid", seed=1) == found
    one_class = Batch(sample.codes_BW, sample.dense_BD, torch.ones(len(sample)))
    assert permutation_importance(logits, one_class, click_schema, split="valid") is None


def test_gates_are_those_of_the_model_and_absent_without(
    make_network: Callable[..., Network], click_schema: fs.Schema
) -> None:
    sample = _sample(click_schema, rows=50)
    network = make_network(
        "finalmlp", hidden_1=[8], hidden_2=[8], num_heads=2, gate_1_context=["user"]
    )
    found = gate_values(network, sample, click_schema)
    with torch.no_grad():
        gates = cast("Any", network.model).gates(**network.embeddings(sample).embeddings)
    assert len(found) == 2 * len(click_schema.columns)
    assert found[2].mean == pytest.approx(float(gates[0][:, 2].mean()), rel=1e-5)
    assert gate_values(make_network("dnn"), sample, click_schema) == []
    off = make_network("finalmlp", hidden_1=[8], hidden_2=[8], num_heads=2, use_gates=False)
    assert gate_values(off, sample, click_schema) == []


@pytest.mark.parametrize(
    ("column", "code", "name"),
    [
        ("user", 0, "(missing)"),
        ("user", 1, "(unknown)"),
        ("user", 2, "100"),
        ("tags", 5, "\u00e9"),
        ("city", 7, "code 7"),
        ("price", 2, "below -1"),
        ("price", 4, "0 to 0.5"),
        ("price", 6, "from 2"),
        ("hour", 9, "07:00"),
        ("user_city", 9, "code 9"),
    ],
)
def test_codes_are_named_for_readers(
    click_schema: fs.Schema, column: str, code: int, name: str
) -> None:
    columns = {each.name: each for each in click_schema.columns}
    assert name_code(columns[column], code) == name


@pytest.mark.parametrize(
    ("part", "code", "name"),
    [
        ("weekday", fs.FIRST_CODE + 2, "Wednesday"),
        ("weekend", fs.FIRST_CODE + 1, "weekend"),
        ("hour_of_week", fs.FIRST_CODE + 25, "Tue 01:00"),
    ],
)
def test_code_of_a_calendar_column_has_the_name_of_its_time(
    part: Any, code: int, name: str
) -> None:
    column = fs.EncodedColumn(
        name="when",
        encoder="calendar",
        inputs=("ts",),
        steps=(fs.Calendar(part=part), fs.Missing()),
        cardinality=200,
    )
    assert name_code(column, code) == name


def _sample(schema: fs.Schema, *, rows: int) -> Batch:
    rng = np.random.default_rng(0)
    codes: NDArray[np.int32] = np.concatenate(
        [
            rng.integers(0, column.cardinality, (rows, column.length), dtype=np.int32)
            for column in schema.codes
        ],
        axis=1,
    )
    dense = torch.from_numpy(rng.normal(size=(rows, len(schema.dense))).astype(np.float32))
    return Batch(torch.from_numpy(codes), dense, torch.zeros(rows))
