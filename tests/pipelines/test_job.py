"""The job file: what is refused and how, and the order defaults, file, `--set`."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import JobError
from headwater.pipelines.job import Job, dump_job, load_job, parse_job, read_model

TEXT = """
name = "toy"

[data]
source = "rows.csv"
split = { by = "ratio", valid = 0.2, test = 0.2 }

[features]
label = "click"
columns = [
    { name = "user", encoder = "vocabulary", min_count = 3 },
    { name = "price", encoder = "quantiles", num_buckets = 10 },
]

[model]
type = "dnn"
embedding_dim = 8

[train]
epochs = 3
"""


@pytest.fixture
def job_path(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TEXT)
    return path


def refused(text: str, *overrides: str, path: Path) -> str:
    """Return the message with which the job is refused."""
    path.write_text(text)
    with pytest.raises(JobError) as caught:
        load_job(path, overrides)
    return str(caught.value)


def problems(change: dict[str, Any]) -> list[str]:
    """Return the lines with which the job is refused once `change` is in its sections."""
    values = tomllib.loads(TEXT)
    for section, changed in change.items():
        old = values.get(section)
        values[section] = {**old, **changed} if old and isinstance(changed, dict) else changed
    with pytest.raises(JobError) as caught:
        parse_job(values)
    return [line.removeprefix("job: ") for line in str(caught.value).splitlines()]


def test_file_overrides_defaults_and_set_overrides_file(job_path: Path) -> None:
    job = load_job(job_path, ["train.epochs=5"])
    assert job.train.batch_size == 4096  # default
    assert load_job(job_path).train.epochs == 3  # file
    assert job.train.epochs == 5  # --set
    assert job.model.settings() == {"embedding_dim": 8}


def test_set_reads_toml_values_and_falls_back_to_text(job_path: Path) -> None:
    job = load_job(
        job_path,
        [
            "train.seed=7",
            "train.compile=true",
            "train.dense.lr=1e-4",
            'export.context=["user"]',
            "train.device=cuda:1",
            "export.name = click-model",
            "model.hidden=[64, 32]",
        ],
    )
    assert (job.train.seed, job.train.compile, job.train.dense.lr) == (7, True, 1e-4)
    assert job.export.context == ["user"]
    assert job.train.device == "cuda:1"
    assert job.export.name == "click-model"
    assert job.model.settings()["hidden"] == [64, 32]


def test_set_creates_sections_that_the_file_lacks(job_path: Path) -> None:
    assert load_job(job_path, ["export.opset=20"]).export.opset == 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed", "--set 'train.seed': expected key.path=value."),
        ("=3", "--set '=3': expected key.path=value."),
        ("name.x=3", "--set 'name.x=3': name is not a table."),
    ],
)
def test_malformed_set_is_refused(job_path: Path, override: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(job_path, [override])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("old", "new", "key", "near"),
    [
        ("epochs = 3", "epoch = 3", "train.epoch", "epochs"),
        ("label =", "lable =", "features.lable", "label"),
        ("source =", "sorce =", "data.sorce", "source"),
        ("[train]", "[export]\ncontxt = []\n[train]", "export.contxt", "context"),
        ("min_count", "min_counts", "features.columns[0] (user).min_counts", "min_count"),
    ],
)
def test_unknown_key_is_refused_with_its_path_and_the_nearest_known_key(
    job_path: Path, old: str, new: str, key: str, near: str
) -> None:
    message = refused(TEXT.replace(old, new), path=job_path)
    (line,) = [line for line in message.splitlines() if "unknown key" in line]
    assert line.startswith(f"{job_path}: ")
    assert key in line
    assert f"Did you mean {near!r}?" in line


def test_unknown_key_of_set_is_refused_like_one_of_the_file(job_path: Path) -> None:
    message = refused(TEXT, "train.sed=1", path=job_path)
    assert message == f"{job_path} with --set: train.sed: unknown key. Did you mean 'seed'?"


def test_wrong_type_is_refused_with_what_was_found(job_path: Path) -> None:
    message = refused(TEXT.replace("epochs = 3", 'epochs = "three"'), path=job_path)
    assert message.startswith(f"{job_path}: train.epochs: ")
    assert "found 'three'" in message


def test_value_out_of_bounds_is_refused(job_path: Path) -> None:
    message = refused(TEXT.replace("valid = 0.2", "valid = 1.5"), path=job_path)
    assert message.startswith(f"{job_path}: data.split.valid: ")
    assert "found 1.5" in message


def test_all_errors_are_reported_at_once(job_path: Path) -> None:
    text = TEXT.replace("epochs = 3", "epoch = 3").replace('label = "click"', "")
    lines = refused(text, path=job_path).splitlines()
    assert len(lines) == 2
    assert any("features.label: required, but absent." in line for line in lines)


def test_errors_of_the_model_are_reported_with_the_others(job_path: Path) -> None:
    text = TEXT.replace("epochs = 3", "epoch = 3").replace("min_count", "mincount")
    text = text.replace("embedding_dim = 8", "embeding_dim = 8\nhiden = [3]")
    assert refused(text, path=job_path).splitlines() == [
        f"{job_path}: {line}"
        for line in (
            "features.columns[0] (user).mincount: unknown key. Did you mean 'min_count'?",
            "train.epoch: unknown key. Did you mean 'epochs'?",
            "model.embeding_dim: unknown key. Did you mean 'embedding_dim'?",
            "model.hiden: unknown key. Did you mean 'hidden'?",
        )
    ]
    message = refused(text.replace('"dnn"', '"dnnn"'), path=job_path)
    assert "model.type: unknown model 'dnnn'. Did you mean 'dnn'?" in message


def test_key_of_another_section_is_not_suggested_for_itself(job_path: Path) -> None:
    message = refused(TEXT.replace("epochs = 3", "lr = 0.1"), path=job_path)
    assert message == f"{job_path}: train.lr: unknown key."


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"features": {"columns": [{"name": "a", "encoder": "vocabluary"}]}},
            (
                "features.columns[0] (a).encoder: unknown 'vocabluary'. Did you mean 'vocabulary'? Expected "
                "'vocabulary', 'hashed', 'log_buckets', 'quantiles', 'standardized', 'identity', 'calendar' "
                "or 'crossed'."
            ),
        ),
        (
            {"data": {"split": {"by": "tiem", "column": "at"}}},
            (
                "data.split.by: unknown 'tiem'. Did you mean 'time'? Expected 'time', 'ratio', "
                "'leave-one-out' or 'column'."
            ),
        ),
        (
            {"data": {"split": {"column": "at"}}},
            "data.split.by: required, but absent. Expected 'time', 'ratio', 'leave-one-out' or 'column'.",
        ),
        (
            {"data": {"join": [{"path": "a", "on": "b"}, {"path": "a", "on": "b", "how": "lef"}]}},
            "data.join[1].how: expected 'left' or 'inner', found 'lef'. Did you mean 'left'?",
        ),
        (
            {"export": {"precision": "double"}},
            "export.precision: expected 'float32' or 'int8', found 'double'.",
        ),
    ],
)
def test_misspelt_value_is_refused_with_the_nearest_of_its_place(
    change: dict[str, dict[str, Any]], line: str
) -> None:
    assert problems(change) == [line]


def test_misspelt_value_of_a_models_own_settings_is_refused_like_others() -> None:
    values = tomllib.loads(TEXT)["model"] | {"type": "dcnv2", "structure": "paralel"}
    with pytest.raises(JobError) as caught:
        read_model("dcnv2", {key: value for key, value in values.items() if key != "type"})
    assert str(caught.value) == (
        "model.structure: expected 'parallel' or 'stacked', found 'paralel'. Did you mean 'parallel'?"
    )


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"data": {"split": {"by": "column", "column": 1, "train": {}, "tset": 2}}},
            [
                "data.split.column: expected a valid string, found 1.",
                "data.split.train: expected text, a number, true or false, or a date, found a table.",
                "data.split.tset: unknown key. Did you mean 'test'?",
            ],
        ),
        (
            {"data": {"split": {"by": "time", "time": 1}}},
            [
                "data.split.column: required, but absent.",
                "data.split.time: unknown key.",
            ],
        ),
        (
            {
                "features": {
                    "columns": [{"name": "a", "encoder": "hashed", "hashed": 5, "length": 0}]
                }
            },
            [
                "features.columns[0] (a).length: expected greater than 0, found 0.",
                "features.columns[0] (a).num_buckets: required, but absent.",
                "features.columns[0] (a).hashed: unknown key. Did you mean 'seed'?",
            ],
        ),
    ],
)
def test_key_that_is_named_like_its_alternative_has_its_own_path(
    change: dict[str, dict[str, Any]], lines: list[str]
) -> None:
    assert problems(change) == lines


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train": {"dense": {"optimizer": "adam"}}}, "train.dense.optimizer: unknown key."),
        ({"data": {"split": {"by": "ratio", "ratio": 0.1}}}, "data.split.ratio: unknown key."),
        ({"batch_size": 4}, "batch_size: unknown key."),
    ],
)
def test_only_keys_that_can_stand_there_are_suggested(change: dict[str, Any], line: str) -> None:
    assert problems(change) == [line]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data": {"source": 5}}, "data.source: expected a valid string or a list, found 5."),
        ({"data": {"source": ["a", 5]}}, "data.source[1]: expected a valid string, found 5."),
        ({"data": {"split": "time"}}, "data.split: expected a table, found 'time'."),
        ({"data": {"join": {"path": "a"}}}, "data.join: expected a list, found a table."),
        ({"data": {"derive": {"x": 5}}}, "data.derive.x: expected a valid string, found 5."),
        ({"train": 5}, "train: expected a table, found 5."),
        ({"features": {"columns": ["a"]}}, "features.columns[0]: expected a table, found 'a'."),
    ],
)
def test_value_of_another_kind_is_told_once_in_words_of_the_file(
    change: dict[str, Any], line: str
) -> None:
    assert problems(change) == [line]


def test_absent_setting_of_an_encoder_is_refused_with_the_column_in_its_path(
    job_path: Path,
) -> None:
    message = refused(TEXT.replace(", num_buckets = 10", ""), path=job_path)
    key = "features.columns[1] (price).num_buckets"
    assert message == f"{job_path}: {key}: required, but absent."


def test_column_declared_twice_is_refused(job_path: Path) -> None:
    message = refused(TEXT.replace('name = "price"', 'name = "user"'), path=job_path)
    assert "user declared twice" in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "give `train` and `valid`"),
        ({"train": "a.csv"}, "give `train` and `valid`"),
        ({"source": "a.csv"}, "needs a `split` rule"),
        ({"source": "a.csv", "train": "b.csv", "split": {"by": "ratio"}}, "not both"),
        ({"train": "a", "valid": "b", "split": {"by": "ratio"}}, "`split` goes with `source`"),
        ({"source": "a", "split": {"by": "tim"}}, "time"),
    ],
)
def test_contradicting_data_section_is_refused(data: dict[str, object], message: str) -> None:
    values = tomllib.loads(TEXT) | {"data": data}
    with pytest.raises(JobError, match="job: data"):
        parse_job(values)
    with pytest.raises(JobError) as caught:
        parse_job(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("split", "line"),
    [
        ({"train": []}, "data.split.train: expected at least 1 in the list, found 0."),
        (
            {"train": [1, {}]},
            "data.split.train[1]: expected text, a number, true or false, or a date, found a table.",
        ),
        (
            {"test": math.nan},
            "data.split.test: expected text, a number, true or false, or a date, found nan.",
        ),
        (
            {"train": ["a", 5], "valid": "5"},
            "data.split: `train` and `valid` both hold '5'; put it into one of them.",
        ),
        (
            {"train": "test"},
            "data.split: `train` and `test` both hold 'test'; put it into one of them.",
        ),
    ],
)
def test_values_of_a_split_by_column_are_refused_by_their_key(
    split: dict[str, Any], line: str
) -> None:
    assert problems({"data": {"split": {"by": "column", "column": "part", **split}}}) == [line]


def test_values_of_a_split_by_column_are_kept_as_they_are_written(job_path: Path) -> None:
    text = (
        'split = { by = "column", column = "day", train = ["a", 5, 0.5, true], valid = 2026-03-05, '
        "test = [] }"
    )
    job = load_job(job_path, [f"data.split={text.partition(' = ')[2]}"])
    split = tomllib.loads(dump_job(job))["data"]["split"]
    assert split["train"] == ["a", 5, 0.5, True]
    assert (split["valid"], split["test"]) == ("2026-03-05", [])
    assert parse_job(tomllib.loads(dump_job(job))) == job


def test_shares_that_leave_no_training_rows_are_refused() -> None:
    values = tomllib.loads(TEXT)
    values["data"]["split"] = {"by": "ratio", "valid": 0.5, "test": 0.5}
    with pytest.raises(JobError, match=r"data\.split"):
        parse_job(values)


def test_broken_toml_is_refused_with_the_line(job_path: Path) -> None:
    message = refused("name = \n", path=job_path)
    assert message.startswith(f"{job_path}: not valid TOML: ")
    assert "line 1" in message


def test_file_that_is_absent_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.toml: no such file\."):
        load_job(tmp_path / "none.toml")
    with pytest.raises(JobError, match="cannot be read as text"):
        load_job(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="cannot be read as text"):
        load_job(tmp_path / "bytes.toml")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x.tmp"])
def test_name_that_is_not_a_folder_name_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="job: name: "):
        parse_job(tomllib.loads(TEXT) | {"name": name})
    with pytest.raises(JobError, match=r"job: export\.name: "):
        parse_job(tomllib.loads(TEXT) | {"export": {"name": name}})


def test_dump_holds_every_default_and_loads_to_an_equal_job(job_path: Path) -> None:
    job = load_job(job_path, ["train.checkpoint_steps=100"])
    text = dump_job(job)
    assert parse_job(tomllib.loads(text)) == job
    assert tomllib.loads(text)["train"]["patience"] == 2
    assert tomllib.loads(text)["model"] == {"type": "dnn", "embedding_dim": 8}


def test_job_is_frozen(job_path: Path) -> None:
    job: Job = load_job(job_path)
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
