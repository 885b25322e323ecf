"""`headwater tune`: a table for a reader, a line of JSON, and a tuning that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.job import Job, dump_job, with_values

pytestmark = pytest.mark.timeout(120)  # the first use of TorchRec in a process takes long

TinyJob = Callable[..., Job]

KEYS = {"train.sparse.lr": {"low": 1e-3, "high": 0.1, "log": True}, "model.hidden": [[4], [8, 4]]}


@pytest.fixture
def _job(tiny_job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write job.toml with `[tune]` into the current folder."""
    monkeypatch.chdir(tmp_path)
    job = tiny_job(model={"type": "dnn", "embedding_dim": 4}, epochs=1)
    job = with_values(job, {"tune": {"trials": 2, "keys": KEYS}})
    Path("job.toml").write_text(dump_job(job))


@pytest.mark.usefixtures("_job")
def test_trials_are_told_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "job.toml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metric"] == "auc"
    assert [trial["state"] for trial in result["trials"]] == ["complete", "complete"]
    assert result["best"] in result["trials"]
    assert result["trials"][0]["values"].keys() == KEYS.keys()
    assert Path(result["report"]).is_file()
    # Of a tuning that has ended nothing is done again, and more trials are added.
    more = ["tune", "--resume", result["tune"], "--set", "tune.trials=3"]
    assert main(more) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1].split() == ["trial", "state", "auc", "epochs", "seconds", *sorted(KEYS)]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    assert lines[5].startswith("best     trial ")
    assert lines[6] == f"job      {result['job']}"
    assert lines[-1] == f"train and release it with: headwater run {result['job']}"
    assert "trial 3 of 3: model.hidden [" in err
    assert "trial 2 of" not in err
    # It lies among the runs of its job and is none of them.
    assert main(["report", *map(str, sorted(Path("runs/tiny").iterdir()))]) == 2
    assert main(["train", "job.toml"]) == 0
    assert main(["evaluate", "job.toml"]) == 0
    (run,) = Path("runs/tiny").glob("2*")
    assert "[tune]" not in (run / "job.toml").read_text()
    assert main(["report", *map(str, sorted(Path("runs/tiny").iterdir()))]) == 0


@pytest.mark.usefixtures("_job")
def test_validate_checks_and_shows_what_is_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "job.toml"]) == 0
    out = capsys.readouterr().out
    assert "What `headwater tune` searches" in out
    assert "0.001 to 0.1, on a scale of logarithms" in out
    assert "[4], [8, 4]" in out
    assert main(["validate", "job.toml", "--json"]) == 0
    keys: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tune"]
    assert {each["key"] for each in keys} == KEYS.keys()
    text = Path("job.toml").read_text().replace("model.hidden", "model.hiden")
    Path("job.toml").write_text(text)
    assert main(["validate", "job.toml"]) == 2
    err = capsys.readouterr().err
    assert "tune.keys: model.hiden = [4]: model.hiden: unknown key. Did you mean 'hidden'?" in err


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "either a job file or --resume FOLDER"),
        (("job.toml", "--resume", "runs"), "either a job file or --resume FOLDER"),
        (("--resume", "runs"), "runs: no tuning, it holds no tune.toml"),
        (("job.toml", "--set", "tune.trials=0"), "tune.trials: expected greater than 0"),
        (("job.toml", "--set", "tune.metric=aux"), "tune.metric: 'aux' is no metric"),
    ],
)
def test_wrong_use_is_refused(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 2
    assert says in capsys.readouterr().err
