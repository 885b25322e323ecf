"""Whatever is wrong with the input: exit status 2, a message that says where, and a folder as before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headwater.pipelines.cli import main

HEADWATER = Path(sys.executable).with_name("headwater")
ROWS = 200

JOB = """
name = "clicks"
[data]
source = "clicks.csv"
split = { by = "ratio" }
[[data.join]]
path = "users.csv"
on = "user"
[features]
label = "click"
user = "user"
columns = [
    { name = "user", encoder = "vocabulary" },
    { name = "item", encoder = "vocabulary", dtype = "int64" },
    { name = "price", encoder = "standardized" },
    { name = "country", encoder = "vocabulary" },
]
[model]
type = "finalmlp"
embedding_dim = 4
hidden_1 = [8]
hidden_2 = [8]
num_heads = 2
gate_hidden = [4]
gate_1_context = ["user"]
[train]
epochs = 1
batch_size = 32
device = "cpu"
monitor = "gauc"
"""

Check = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a job and data that nothing is wrong with."""
    write_clicks(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_clicks(folder: Path, file: str = "clicks.csv", /, **values: list[Any]) -> None:
    """Write a table of clicks; `values` replace columns of it."""
    columns: dict[str, list[Any]] = {
        "user": [i % 20 for i in range(ROWS)],
        "item": [i % 7 for i in range(ROWS)],
        "price": [0.5 * (i % 11) for i in range(ROWS)],
        "click": [i % 3 % 2 for i in range(ROWS)],
    }
    pl.DataFrame(columns | values).write_csv(folder / file)
    users = pl.DataFrame({"user": range(20), "country": ["de", "fr"] * 10})
    users.write_csv(folder / "users.csv")


def edit(folder: Path, old: str, new: str) -> None:
    """Change the job."""
    job = folder / "job.toml"
    text = job.read_text()
    assert old in text
    job.write_text(text.replace(old, new))


def put(values: list[Any], row: int, value: Any) -> list[Any]:
    """Return `values` as text with another one in `row`, counted from 1."""
    return [value if index == row - 1 else str(each) for index, each in enumerate(values)]


def test_nothing_is_wrong_with_the_job_that_the_tests_spoil(folder: Path) -> None:
    assert main(["validate", "job.toml"]) == 0


JOB_FILES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "unknown key": ("epochs = 1", "epoch = 1", ("job.toml: train.epoch: unknown key", "'epochs'")),
    "unknown section": ("[train]", "[trian]", ("job.toml: trian: unknown key", "'train'")),
    "wrong type of a value": (
        "epochs = 1",
        'epochs = "many"',
        ("job.toml: train.epochs", "integer", "'many'"),
    ),
    "value out of range": ("epochs = 1", "epochs = 0", ("train.epochs", "greater than 0")),
    "unknown encoder": (
        '"price", encoder = "standardized"',
        '"price", encoder = "standardised"',
        ("features.columns[2] (price)", "standardised", "standardized"),
    ),
    "a feature twice": (
        '"price", encoder',
        '"item", encoder',
        ("features", "item declared twice"),
    ),
    "label as a feature": (
        '"price", encoder = "standardized"',
        '"click", encoder = "identity"',
        ("features.columns", "'click' reads the label"),
    ),
    "unknown model": (
        '"finalmlp"',
        '"finalmpl"',
        ("job.toml", "model.type", "'finalmpl'", "finalmlp"),
    ),
    "unknown model of one's own": (
        '"finalmlp"',
        '"no_such_package.module:Model"',
        ("model.type", "no_such_package"),
    ),
    "unknown key of the model": (
        "num_heads",
        "num_head",
        ("model.num_head: unknown key", "'num_heads'"),
    ),
    "heads that do not divide": ("num_heads = 2", "num_heads = 3", ("num_heads", "divide")),
    "unknown feature in a gate": (
        'gate_1_context = ["user"]',
        'gate_1_context = ["usr"]',
        ("job.toml", "model.gate_1_context", "'usr'", "user"),
    ),
    "batch of one row for batch normalisation": (
        "batch_size = 32",
        "batch_size = 1",
        ("job.toml", "train.batch_size: found 1, expected at least 2", "model.batch_norm_1 and"),
    ),
    "grouped AUC without groups": (
        'user = "user"\ncolumns',
        "columns",
        ("job.toml", "train.monitor: 'gauc' needs groups", "features.user"),
    ),
    "device that is not known": (
        'device = "cpu"',
        'device = "cdua"',
        ("job.toml", "train.device: unknown device 'cdua'. Did you mean 'cuda'?"),
    ),
    "unknown raw column in the context": (
        "[train]",
        '[export]\ncontext = ["contry"]\n[train]',
        ("job.toml", "export.context", "'contry'", "'country'"),
    ),
    "missing data file": ('"clicks.csv"', '"absent.csv"', ("absent.csv: no such file",)),
    "missing side table": ('"users.csv"', '"absent.csv"', ("absent.csv: no such file",)),
    "pattern without a match": ('"clicks.csv"', '"c-*.csv"', ("c-*.csv: no file matches",)),
    "format that is not known": ('"clicks.csv"', '"job.toml"', ("job.toml", ".parquet", ".csv")),
    "file system that is not known": (
        '"clicks.csv"',
        '"nowhere://x/y.csv"',
        ("nowhere://x/y.csv", "nowhere"),
    ),
    "missing column": (
        '"price", encoder',
        '"pricee", encoder',
        ("clicks.csv", "column 'pricee' is not in the data", "Did you mean 'price'?"),
    ),
    "missing label": (
        'label = "click"',
        'label = "clik"',
        ("clicks.csv", "column 'clik' is not", "'click'", "features.label"),
    ),
    "missing join key": ('on = "user"', 'on = "usr"', ("users.csv: column 'usr'", "'user'")),
    "derived column with bad syntax": (
        "[[data.join]]",
        'derive = { x = "price >>> 4" }\n[[data.join]]',
        ("data.derive.x", "'price >>> 4'", "Polars SQL expression"),
    ),
    "derived column from an unknown one": (
        "[[data.join]]",
        'derive = { click = "ratin >= 4" }\n[[data.join]]',
        ("data.derive.click", "'ratin'"),
    ),
    "derived column over many rows": (
        "[[data.join]]",
        'derive = { click = "price > AVG(price)" }\n[[data.join]]',
        ("data.derive.click", "more than one row"),
    ),
    "filter that keeps nothing": (
        "[[data.join]]",
        'filter = "price > 1000"\n[[data.join]]',
        ("clicks.csv: no rows that the filter keeps",),
    ),
    "filter that is no condition": (
        "[[data.join]]",
        'filter = "price + 1"\n[[data.join]]',
        ("data.filter", "expected true or false"),
    ),
    "encoder that cannot take the column": (
        '"country", encoder = "vocabulary"',
        '"country", encoder = "calendar", part = "hour"',
        ("'country'",),
    ),
}
"""What is wrong: text of the job, what it becomes, and what the message must say."""


@pytest.mark.parametrize("case", JOB_FILES)
@pytest.mark.parametrize("command", ["run", "train", "validate"])
def test_job_that_is_wrong(case: str, command: str, folder: Path, refused: Check) -> None:
    old, new, says = JOB_FILES[case]
    edit(folder, old, new)
    refused(command, "job.toml", says=says, inside=folder)


@pytest.mark.parametrize("command", ["run", "prepare", "train", "validate"])
def test_job_file_that_is_absent_or_no_toml(command: str, folder: Path, refused: Check) -> None:
    refused(command, "absent.toml", says=("absent.toml: no such file",), inside=folder)
    (folder / "broken.toml").write_text('name = "x"\n[data\n')
    says = ("broken.toml: not valid TOML", "line 2")
    refused(command, "broken.toml", says=says, inside=folder)
    (folder / "binary.toml").write_bytes(b"\xff\xfe\x00")
    refused(command, "binary.toml", says=("binary.toml: cannot be read as text",), inside=folder)


SETTINGS: dict[str, tuple[str, ...]] = {
    "train.epochs": ("--set 'train.epochs'", "key.path=value"),
    "train.epoch=3": ("train.epoch: unknown key", "'epochs'"),
    "train.epochs=soon": ("train.epochs", "integer", "'soon'"),
    "name.x=1": ("--set 'name.x=1'", "name is not a table"),
    "=1": ("--set '=1'", "key.path=value"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_value_that_cannot_be_set(setting: str, folder: Path, refused: Check) -> None:
    refused("run", "job.toml", "--set", setting, says=SETTINGS[setting], inside=folder)


def clicks(**values: tuple[int, Any]) -> Callable[[Path], None]:
    """Return a function that writes the table with one value changed: column = (row, value)."""

    def write(folder: Path) -> None:
        frame = pl.read_csv(folder / "clicks.csv")
        changed = {name: put(frame[name].to_list(), *at) for name, at in values.items()}
        write_clicks(folder, "clicks.csv", **changed)

    return write


def text_of(name: str, content: bytes) -> Callable[[Path], None]:
    """Return a function that writes a file."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


DATA: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "text in an integer column": (
        clicks(item=(57, "shoe")),
        ("clicks.csv, row 57, column 'item'", "'shoe'", "int64"),
    ),
    "text in a number column": (
        clicks(price=(58, "cheap")),
        ("clicks.csv, row 58, column 'price'", "'cheap'", "double"),
    ),
    "label outside 0 and 1": (
        clicks(click=(31, "2")),
        ("clicks.csv, row 31, column 'click'", "2", "a label is 0 or 1"),
    ),
    "label that is text": (
        clicks(click=(31, "often")),
        ("clicks.csv, row 31, column 'click'", "'often'", "a label is 0 or 1"),
    ),
    "label that is missing": (
        clicks(click=(32, "")),
        ("clicks.csv, row 32, column 'click'", "no value", "a label is 0 or 1"),
    ),
    "no row": (text_of("clicks.csv", b"user,item,price,click\n"), ("clicks.csv: no rows",)),
    "no byte": (text_of("clicks.csv", b""), ("clicks.csv: the file is empty",)),
    "too many fields": (
        text_of("clicks.csv", b"user,item,price,click\n1,2,3,1\n1,2,3,1,5\n"),
        ("clicks.csv, row 2: found 5 fields between ',', the header names 4",),
    ),
    "a column twice": (
        text_of("clicks.csv", b"user,item,item,click\n1,2,3,1\n"),
        ("clicks.csv", "'item'", "twice"),
    ),
    "key that is not unique": (
        text_of("users.csv", b"user,country\n1,de\n2,fr\n1,fr\n"),
        ("users.csv: join key user is not unique", "user = 1"),
    ),
    "one class in all rows": (
        lambda folder: write_clicks(folder, click=[0] * ROWS),
        ("clicks.csv", "have the label 0", "both 0 and 1"),
    ),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_data_that_is_wrong(case: str, command: str, folder: Path, refused: Check) -> None:
    spoil, says = DATA[case]
    spoil(folder)
    refused(command, "job.toml", says=says, inside=folder)


def test_validation_rows_of_one_class(folder: Path, refused: Check) -> None:
    write_clicks(folder, "valid.csv", click=[1] * ROWS)
    edit(folder, 'source = "clicks.csv"', 'train = "clicks.csv"\nvalid = "valid.csv"')
    edit(folder, 'split = { by = "ratio" }', "")
    says = ("200 rows of valid have the label 1", "both 0 and 1")
    refused("run", "job.toml", says=says, inside=folder)


@pytest.mark.parametrize("spoil", ["cut", "flip", "text"])
def test_parquet_file_that_is_corrupt(spoil: str, folder: Path, refused: Check) -> None:
    pl.read_csv(folder / "clicks.csv").write_parquet(folder / "clicks.parquet")
    path = folder / "clicks.parquet"
    content = path.read_bytes()
    middle = len(content) - 20  # in the footer, which says where columns lie
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:-100], "flip": flipped, "text": b"user,item\n"}[spoil])
    edit(folder, '"clicks.csv"', '"clicks.parquet"')
    refused("run", "job.toml", says=("clicks.parquet",), inside=folder)


def test_missing_and_nan_values_are_no_error(folder: Path) -> None:
    write_clicks(
        folder,
        item=["" if i % 10 == 0 else str(i % 7) for i in range(ROWS)],
        price=["" if i % 8 == 0 else "NaN" if i % 8 == 1 else "1.5" for i in range(ROWS)],
        user=["99" if i % 20 == 19 else str(i % 20) for i in range(ROWS)],
    )
    assert main(["prepare", "job.toml"]) == 0
    (statistics,) = folder.glob("prepared/*/statistics.json")
    splits = json.loads(statistics.read_text())["splits"].values()
    missing = {
        name: sum(split["columns"][name]["missing"] for split in splits)
        for name in ("user", "item", "price", "country")
    }
    assert missing == {"user": 0, "item": 20, "price": 50, "country": 10}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "absent.toml"), "absent.toml: no such file"),
        (("validate", "broken.toml"), "broken.toml: not valid TOML"),
        (("rnu", "job.toml"), "Did you mean 'run'?"),
        (("run", "job.toml", "--sett", "a=1"), "--sett"),
        (("run",), "headwater run --help"),
        (("init",), "name a data file"),
        (("init", "absent.csv"), "absent.csv: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_status_and_message_of_the_real_command(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    snapshot: Callable[[Path], dict[str, str]],
) -> None:
    (tmp_path / "broken.toml").write_text("name =\n")
    before = snapshot(tmp_path)
    done = subprocess.run(
        [HEADWATER, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("headwater: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert snapshot(tmp_path) == before
