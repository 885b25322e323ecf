"""The report and the comparison: complete, self-contained, inert whatever columns are called."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import RunError
from headwater.pipelines.cli import main
from headwater.pipelines.family import FAMILIES
from headwater.pipelines.reporting.compare import compare_runs
from headwater.pipelines.reporting.report import write_report

EVIL = "<script>alert('x')</script>"
COLUMNS = ["user_id", EVIL, "$price$ & cost", "\u5e74\u9f62"]
JOB = """
name = "toy"

[data]
source = "rows.parquet"

[data.split]
by = "time"
column = "at"

[features]
label = "click"

[[features.columns]]
name = "user_id"
encoder = "vocabulary"

[[features.columns]]
name = "<script>alert('x')</script>"
encoder = "vocabulary"

[model]
type = "finalmlp"

[train]
seed = 1
"""


def split_of(rows: int, auc: float | None) -> dict[str, Any]:
    names = ("auc", "logloss", "gauc", "ne", "ece", "calibration")
    metrics = dict.fromkeys(names, 0.5) | {"auc": auc, "gauc": None}
    bins = [{"mean_prob": i / 20, "rate": i / 21, "rows": rows // 20} for i in range(20)]
    values = ["(missing)", "(unknown)", "M", EVIL, *map(str, range(30))]
    return {
        "rows": rows,
        "positives": rows // 4,
        "base_rate": 0.25,
        "mean_prob": 0.26,
        "metrics": metrics,
        "groups": {"used": 12, "skipped": 3, "rows_used": rows - 7, "rows_missing": 5},
        "intervals": {"auc": None if auc is None else [auc - 0.01, auc + 0.01]},
        "roc": {"fpr": [], "tpr": []}
        if auc is None
        else {"fpr": [0, 0.2, 0.6, 1], "tpr": [0, 0.5, 0.9, 1]},
        "calibration_bins": bins,
        "histogram": {
            "edges": [i / 50 for i in range(51)],
            "negative": [max(0, 40 - i) for i in range(50)],
            "positive": [min(i, 20) for i in range(50)],
        },
        "slices": [
            {
                "column": column,
                "value": value,
                "code": code,
                "rows": 100 + code,
                "positives": 20,
                "auc": None if code == 0 else 0.7,
                "logloss": 0.4,
                "mean_prob": 0.2,
                "rate": 0.2,
            }
            for column in COLUMNS[:3]
            for code, value in enumerate(values)
        ],
    }


def evaluation_of(auc: float | None = 0.8, test: bool = True) -> dict[str, Any]:
    splits = {"valid": split_of(1000, auc)}
    if test:
        splits["test"] = split_of(2000, auc)
    return {
        "format_version": 2,
        "family": "ctr",
        "name": "toy",
        "model": "finalmlp",
        "headwater_version": "0.1.0",
        "training": {
            "epochs": 4,
            "best_epoch": 3,
            "steps": 400,
            "stopped": "plateau",
            "monitor": "auc",
            "best": auc,
            "seconds": 75.2,
            "rows_per_second": 123456.7,
            "peak_rss_mb": 2048.0,
            "peak_cuda_mb": None,
            "parameters": 1234567,
            "device": "cpu",
            "precision": "float32",
            "seed": 1,
            "world_size": 1,
        },
        "data": {
            "rows": {"train": 54_321, **{name: split["rows"] for name, split in splits.items()}},
            "time_range_ms": [1_714_557_600_000, 1_715_162_400_999],
        },
        "history": [
            {
                "epoch": epoch,
                "step": 100 * epoch,
                "train_loss": 0.6 / epoch,
                "valid": {"auc": 0.6 + 0.05 * math.log(epoch), "logloss": 0.55, "gauc": None},
                "lr_sparse": 0.02,
                "lr_dense": 0.001,
                "seconds": 3.0,
                "rows_per_second": 1e5,
                "improved": epoch < 4,
            }
            for epoch in range(1, 5)
        ],
        "splits": splits,
        "importance": None
        if auc is None
        else {
            "split": "valid",
            "rows": 1000,
            "auc": auc,
            "columns": [
                {"column": name, "auc_drop": 0.1 / (i + 1) - 0.03} for i, name in enumerate(COLUMNS)
            ],
        },
        "rates": [
            {"column": name, "split": split, "missing": 0.0001 * i, "unknown": None if i else 0.2}
            for i, name in enumerate(COLUMNS)
            for split in ("train", *splits)
        ],
        "gates": [
            {"gate": gate, "column": name, "mean": 1 + 0.1 * i, "std": 0.05}
            for gate in ("gate_1", "gate_2")
            for i, name in enumerate(COLUMNS)
        ],
    }


def make_run(path: Path, evaluation: dict[str, Any] | None = None, job: str = JOB) -> Path:
    path.mkdir(parents=True)
    (path / "job.toml").write_text(job)
    text = json.dumps(evaluation_of() if evaluation is None else evaluation)
    (path / "evaluation.json").write_text(text)
    return path


class Page(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_report_has_every_section_and_its_numbers(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "runs/toy/2026"))
    assert path == tmp_path / "runs/toy/2026/report.html"
    page = Page(path)
    for title in (
        "What was trained",
        "Metrics",
        "Learning",
        "Scores",
        "Importance of columns",
        "Gates",
        "Missing and unknown values",
        "Slices of test rows",
        "The resolved job",
    ):
        assert title in page.words
    for text in (
        "0.79000 .. 0.81000",
        "1,234,567",
        "123,457",
        "5 rows without a group left out",
        "2.0 GB",
        "1 min 15 s",
        "20.00 %",
        "mean probability 0.26000 0.26000",
        "0.80000 AUC, test rows",
        "0.50000 logloss, test rows",
    ):
        assert text in page.text
    assert page.tags.count("img") == 4


def test_every_section_is_in_the_navigation(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    anchors = re.findall(r'<h2 id="(\w+)">', text)
    assert anchors == re.findall(r'<a href="#(\w+)">', text)
    assert anchors == [
        "trained", "metrics", "learning", "scores", "importance", "gates", "slices", "rates", "job",
    ]  # fmt: skip


def test_report_says_how_many_rows_there_are_and_which_time_training_covers(
    tmp_path: Path,
) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert "54,321 train, 1,000 valid, 2,000 test" in page.words
    assert "2024-05-01 10:00:00 to 2024-05-08 10:00:00 UTC" in page.words
    evaluation = evaluation_of()
    evaluation["data"]["time_range_ms"] = None
    page = Page(write_report(make_run(tmp_path / "timeless", evaluation)))
    assert "no time column" in page.words


def test_report_names_the_remedy_where_epochs_ended_an_improving_training(tmp_path: Path) -> None:
    evaluation = evaluation_of()
    evaluation["training"] |= {"stopped": "epochs", "still_improving": True, "epochs": 4}
    page = Page(write_report(make_run(tmp_path / "run", evaluation)))
    assert "stopped: all epochs done, still improving" in page.text
    assert "Training was still improving: train.epochs = 4 ended training" in page.text
    assert "--set train.epochs=8" in page.text
    assert "improving" not in Page(write_report(make_run(tmp_path / "other"))).text


def test_report_says_which_values_divide_the_rows(tmp_path: Path) -> None:
    rule = 'by = "column"\ncolumn = "week"\ntrain = [1, 2]\nvalid = 3\ntest = []'
    job = JOB.replace('by = "time"\ncolumn = "at"', rule)
    page = Page(write_report(make_run(tmp_path / "run", job=job)))
    assert "by column (column week; train 1, 2; valid 3; test none)" in page.words


def test_report_fetches_nothing(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert {link[:5] for link in page.links if not link.startswith("#")} == {"data:"}
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(", text)


def test_column_called_script_is_text(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run"))
    page = Page(path)
    assert EVIL in page.words
    assert "script" not in page.tags
    assert "<script" not in path.read_text(encoding="utf-8")


def test_pictures_are_well_formed_svg_with_text_as_it_is(tmp_path: Path) -> None:
    first = make_run(tmp_path / "<script>" / "$a$")
    comparison = compare_runs([first, make_run(tmp_path / "b")])
    (source,) = [link for link in Page(comparison.page).links if link.startswith("data:")]
    svg = base64.b64decode(source.partition(",")[2]).decode()
    assert "<script" not in svg
    assert "$a$" in svg


def test_comparison_pictures_each_headline_metric_that_a_run_has(tmp_path: Path) -> None:
    comparison = compare_runs([make_run(tmp_path / "1"), make_run(tmp_path / "2")])
    (source,) = [link for link in Page(comparison.page).links if link.startswith("data:")]
    svg = base64.b64decode(source.partition(",")[2]).decode()
    assert re.findall(r"([\w ]+) on validation rows</text>", svg) == ["AUC", "logloss"]


def test_report_without_test_rows_gates_or_importance_leaves_their_sections_out(
    tmp_path: Path,
) -> None:
    evaluation = evaluation_of(test=False) | {"gates": [], "importance": None, "rates": []}
    page = Page(write_report(make_run(tmp_path / "run", evaluation)))
    assert "Slices of valid rows" in page.words
    assert not {"Gates", "Importance of columns", "Missing and unknown values"} & set(page.words)


def test_report_with_metrics_that_are_not_defined_says_so(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", evaluation_of(auc=None))))
    assert "AUC, test rows" in page.words
    assert "Importance of columns" not in page.words
    assert "nan" not in page.text.lower().split()


def test_large_slices_are_cut_and_the_rest_counted(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert "and 10 smaller ones, in evaluation.json" in page.words


def test_equal_runs_give_equal_reports(tmp_path: Path) -> None:
    first = write_report(make_run(tmp_path / "a/run")).read_bytes()
    assert write_report(make_run(tmp_path / "b/run")).read_bytes() == first


def test_comparison_shows_metrics_and_only_settings_that_differ(tmp_path: Path) -> None:
    worse = evaluation_of(auc=0.7)
    first = make_run(tmp_path / "runs/toy/1")
    second = make_run(tmp_path / "runs/toy/2", worse, JOB.replace("seed = 1", "seed = 2"))
    comparison = compare_runs([first, second])
    assert [row["run"] for row in comparison.rows] == ["1", "2"]
    assert [row["test auc"] for row in comparison.rows] == [0.8, 0.7]
    assert "test gauc" not in comparison.metrics
    assert comparison.settings == {"train.seed": ["1", "2"]}
    assert comparison.best["test auc"] == ["1"]
    assert comparison.best["test logloss"] == []
    assert comparison.page == tmp_path / "runs/toy/comparison.html"
    lines = comparison.text.splitlines()
    assert lines[0].split() == ["metric", "1", "2"]
    assert lines[1].split() == ["valid", "auc", "0.80000", "0.70000"]
    assert lines[-1].split() == ["train.seed", "1", "2"]
    assert {"train.seed", "2 runs compared"} <= set(Page(comparison.page).words)


def test_settings_of_columns_are_compared_by_name(tmp_path: Path) -> None:
    second = JOB.replace('encoder = "vocabulary"', 'encoder = "vocabulary"\nmin_count = 5', 1)
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", job=second)]
    assert compare_runs(runs).settings == {"features.columns[user_id].min_count": ["-", "5"]}


def test_equal_jobs_are_said_to_be_equal(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "x/1"), make_run(tmp_path / "y/1")]
    comparison = compare_runs(runs, tmp_path / "out.html")
    assert [row["run"] for row in comparison.rows] == ["x/1", "y/1"]
    assert "Nothing: the resolved jobs are equal." in Page(tmp_path / "out.html").words


def test_same_run_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match="the same run is given twice"):
        compare_runs([run, run])


def test_run_that_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none: no such run folder\."):
        write_report(tmp_path / "none")
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"evaluation\.json: no such file.*headwater evaluate --run"):
        write_report(tmp_path / "run")
    run = make_run(tmp_path / "old", {"format_version": 0})
    with pytest.raises(RunError, match="found an evaluation of format 0, expected format 2"):
        write_report(run)
    (run / "evaluation.json").write_text('{"format_version": 2,')
    with pytest.raises(RunError, match="is damaged"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_evaluation_of_the_format_before_is_refused_in_one_line_with_the_remedy(
    tmp_path: Path,
) -> None:
    before = evaluation_of() | {"format_version": 1}
    del before["family"]
    run = make_run(tmp_path / "run", before)
    with pytest.raises(RunError) as refused:
        write_report(run)
    assert str(refused.value) == (
        f"{run / 'evaluation.json'}: found an evaluation of format 1, expected format 2 of family ctr or "
        f"retrieval. Write it again by `headwater evaluate --run {run}`."
    )


def test_evaluation_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluation_of() | {"family": "toys"})
    with pytest.raises(RunError, match="found an evaluation of format 2 of family toys, expected"):
        write_report(run)


def test_runs_of_two_families_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "toys", FAMILIES["ctr"])
    runs = [
        make_run(tmp_path / "1"),
        make_run(tmp_path / "2", evaluation_of() | {"family": "toys"}),
    ]
    with pytest.raises(
        RunError, match="runs of one family of models can be compared; 1 is ctr, 2 is toys"
    ):
        compare_runs(runs)
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("auc", [0.7, 0.8, 0.8], ["2", "3"]),
        ("logloss", [0.4, 0.5, None], ["1"]),
        ("calibration", [0.8, 1.1, 1.2], ["2"]),
        ("calibration", [0.9, 0.7, 1.2], ["1"]),
    ],
)
def test_best_of_a_metric_is_high_low_or_nearest_to_a_number(
    tmp_path: Path, metric: str, values: list[float | None], best: list[str]
) -> None:
    runs: list[Path] = []
    for number, value in enumerate(values, start=1):
        evaluation = evaluation_of()
        evaluation["splits"]["test"]["metrics"][metric] = value
        runs.append(make_run(tmp_path / str(number), evaluation))
    assert compare_runs(runs).best[f"test {metric}"] == best


def test_runs_of_a_glob_are_compared_again_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/toy"
    make_run(folder / "1")
    make_run(folder / "2", job=JOB.replace("seed = 1", "seed = 2"))
    unfinished = make_run(folder / "3")
    (unfinished / "evaluation.json").unlink()
    for _ in range(2):
        assert main(["report", *map(str, sorted(folder.iterdir())), "--json"]) == 0
        captured = capsys.readouterr()
        assert [row["run"] for row in json.loads(captured.out)["runs"]] == ["1", "2"]
        assert f"{unfinished}: left out, it was not evaluated yet." in captured.err
    assert (folder / "comparison.html").is_file()


def test_run_that_is_absent_is_refused_among_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(make_run(tmp_path / "1")), str(tmp_path / "none")]) == 2
    assert "none: no such run folder." in capsys.readouterr().err


def test_report_of_a_job_is_of_its_newest_complete_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(JOB)
    assert main(["report", "job.toml"]) == 2
    assert "runs/toy: no complete run." in capsys.readouterr().err
    for name in "12":
        (make_run(Path("runs/toy", name)) / "metrics.json").write_text("{}")
    make_run(Path("runs/toy/3"))
    assert main(["report", "job.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": "runs/toy/2/report.html"}
