"""The Python API: what `headwater.pipelines` offers, lazily, and what its functions take."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

import headwater.pipelines as api
from headwater.feature_store.errors import InputError, RunError
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import Prepared


@pytest.mark.parametrize("name", api.__all__)
def test_every_public_name_is_what_it_says_even_after_its_submodule_is_imported(name: str) -> None:
    value = getattr(api, name)
    importlib.import_module(value.__module__)
    assert getattr(api, name) is value
    assert not isinstance(value, ModuleType)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'foretell'"):
        api.foretell  # noqa: B018


def test_runs_and_folders_are_taken_as_text_or_path(
    tiny_job: Callable[..., Job], tiny_prepared: Prepared, tmp_path: Path
) -> None:
    job = tiny_job(epochs=1)
    run = api.train(job, tiny_prepared, runs=str(tmp_path / "runs"))
    by_text, by_path = str(run.path), run.path
    assert api.train(job, tiny_prepared, run=by_text, resume=True).path == by_path
    assert api.evaluate(by_text) == api.evaluate(by_path)
    releases = tmp_path / "releases"
    made = [api.export(by_text, str(releases)), api.export(by_path, releases)]
    assert made == [releases / "tiny" / "1", releases / "tiny" / "2"]
    assert isinstance(job.data.source, str)
    pl.read_parquet(job.data.source).head(3).write_parquet(tmp_path / "rows.parquet")
    for folder in (str(made[0]), made[0]):
        out = tmp_path / "scored.parquet"
        assert api.score(folder, tmp_path / "rows.parquet", str(out))["rows"] == 3
    assert {api.write_report(each) for each in (by_text, by_path, run)} == {
        run.path / "report.html"
    }
    page = tmp_path / "runs.html"
    for each in (by_text, by_path, run):
        assert api.compare_runs([each], str(page)).page == page


def test_data_is_prepared_below_a_folder_given_as_text(
    tiny_job: Callable[..., Job], tmp_path: Path
) -> None:
    assert api.prepare(tiny_job(), str(tmp_path)).path.is_relative_to(tmp_path)


PATH, RUN = "a path, as text or Path", "a run: a Run, or its folder as text or Path"
SOURCE = "a path, glob or URL, as text or Path"
JOB = "a Job, as load_job returns it"
SETTINGS = "a list of settings, as ['train.seed=7']"
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("load_job", (None,), {}, "path", PATH),
    ("load_job", ("job.toml", "train.seed=7"), {}, "overrides", SETTINGS),
    ("load_job", ("job.toml", {"train.seed": 7}), {}, "overrides", SETTINGS),
    ("load_job", ("job.toml", [7]), {}, "overrides", SETTINGS),
    ("prepare", ("job.toml",), {}, "job", JOB),
    ("train", (None, None), {}, "job", JOB),
    ("evaluate", (None,), {}, "run", RUN),
    ("evaluate", (5,), {}, "run", RUN),
    ("evaluate", ({"run": 1},), {}, "run", RUN),
    ("export", (["run"],), {}, "run", RUN),
    ("score", (None, "a.csv", "b.csv"), {}, "release", "a release's folder, as text or Path"),
    ("score", ("releases", ["a.csv"], "b.csv"), {}, "source", SOURCE),
    ("score", ("releases", "a.csv", 1), {}, "out", PATH),
    ("score", ("releases", "a.csv", "b.csv"), {"batch_rows": 0}, "batch_rows", "at least 1"),
    ("write_report", (1.5,), {}, "run_dir", RUN),
    ("compare_runs", ("runs/a",), {}, "runs", "a list of runs, or of their folders"),
    ("compare_runs", (None,), {}, "runs", "a list of runs, or of their folders"),
    ("compare_runs", ([None],), {}, "runs", RUN),
    ("compare_runs", (["runs/a"],), {"out": 5}, "out", PATH),
]


@pytest.mark.parametrize(("name", "values", "named", "argument", "expected"), WRONG)
def test_argument_of_another_kind_is_refused_by_its_name(
    name: str, values: tuple[Any, ...], named: dict[str, Any], argument: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        getattr(api, name)(*values, **named)
    assert re.fullmatch(
        rf"{name}: {argument}: found .+, expected {re.escape(expected)}\.", str(caught.value)
    )


def test_other_arguments_of_another_kind_are_refused_too(
    tiny_job: Callable[..., Job], tiny_prepared: Prepared, tmp_path: Path
) -> None:
    job = tiny_job(epochs=1)
    data = (job, tiny_prepared)
    run = api.train(*data, runs=tmp_path)
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
        ("prepare", (job, 5), {}, r"root: found 5 \(int\), expected a path, as text or Path\."),
        ("train", (job, tmp_path), {}, "prepared: found .*, expected Prepared, as prepare"),
        ("train", data, {"runs": None}, "runs: found None, expected a path"),
        ("train", data, {"run": 5}, "run: found 5"),
        ("train", data, {"resume": True}, "resume: give the run to go on with"),
        ("evaluate", (run, "valid"), {}, "splits: found 'valid'"),
        ("evaluate", (run, ["tset"]), {}, "splits: found 'tset'"),
        ("export", (run, 5), {}, "releases: found 5"),
        ("export", (run,), {"settings": {}}, "settings: found {}"),
        ("compare_runs", ([],), {}, "runs: found none"),
    ]
    for name, values, named, says in wrong:
        with pytest.raises(InputError, match=f"{name}: {says}"):
            getattr(api, name)(*values, **named)
    with pytest.raises(RunError, match="not a run"):
        api.train(*data, run=tmp_path)
