"""Preparing a job: what is written, what is refused, and what a failure leaves behind: nothing."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.feature_store.errors import (
    OutputError,
    ShardError,
)
from headwater.feature_store.polars_compiler import encode_frame
from headwater.feature_store.reader import Reader
from headwater.pipelines.job import Job, dump_job, parse_job
from headwater.pipelines.prepared import SplitName
from headwater.pipelines.preparing.prepare import Prepared, load_prepared, prepare

JobOf = Callable[..., Job]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def clicks(num_rows: int = 400, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    cities = np.array(["rome", "oslo", "lima", None], object)[rng.integers(0, 4, num_rows)]
    return pl.DataFrame(
        {
            "user": rng.integers(0, 30, num_rows),
            "city": pl.Series(cities.tolist(), dtype=pl.String),
            "price": rng.random(num_rows).round(3),
            "ts": 1_700_000_000 + rng.permutation(num_rows),
            "click": rng.integers(0, 2, num_rows),
        }
    ).with_columns(price=pl.when(pl.col("price") > 0.1).then("price"))


def write_job(job: Job) -> None:
    Path("job.toml").write_text(dump_job(job))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_shards_hold_what_the_schema_makes_of_the_rows(job_of: JobOf) -> None:
    frame = clicks()
    frame.write_csv("clicks.csv")
    prepared = prepare(
        job_of(user="user", time="ts", weight="price_w", data={"derive": {"price_w": "user + 1"}})
    )
    assert prepared.splits == ("train", "valid", "test")
    in_time = frame.sort("ts", maintain_order=True)
    ranges: dict[SplitName, slice] = {
        "train": slice(320),
        "valid": slice(320, 360),
        "test": slice(360, 400),
    }
    for split, part in ranges.items():
        rows = in_time[part]
        expected = frame.join(rows.select("ts"), on="ts", maintain_order="left")
        encoded = encode_frame(expected.lazy(), prepared.schema).collect()
        (batch,) = Reader(prepared.dataset(split), 1000, seed=0, shuffle=False).epoch(0)
        np.testing.assert_array_equal(
            batch.codes, encoded.select("user", "city", "price_q").to_numpy()
        )
        np.testing.assert_array_equal(batch.dense, encoded.select("price").to_numpy())
        np.testing.assert_array_equal(batch.label, expected["click"].to_numpy())
        assert batch.weight is not None
        np.testing.assert_array_equal(batch.weight, expected["user"].to_numpy() + 1)
        assert batch.group is not None
        np.testing.assert_array_equal(batch.group, expected["user"].to_numpy())


def test_encoders_learn_from_training_rows_only(job_of: JobOf) -> None:
    frame = clicks().with_columns(
        city=pl.when(pl.col("ts") < 1_700_000_320).then(pl.lit("old")).otherwise(pl.lit("new"))
    )
    frame.write_csv("clicks.csv")
    statistics = prepare(job_of()).statistics.splits
    assert statistics["train"].columns["city"].unknown == 0
    assert statistics["valid"].columns["city"].unknown == 40
    assert statistics["test"].columns["city"].unknown == 40


def test_statistics_count_rows_labels_missing_values_and_time(job_of: JobOf) -> None:
    frame = clicks()
    frame.write_csv("clicks.csv")
    prepared = prepare(job_of())
    train = frame.filter(pl.col("ts") < 1_700_000_320)
    found = prepared.statistics.splits["train"]
    assert (found.rows, found.positives) == (320, train["click"].sum())
    assert found.label_rate == pytest.approx(train["click"].mean())
    missing = {name: counts.missing for name, counts in found.columns.items()}
    null = train.null_count().row(0, named=True)
    assert missing == {
        "user": 0, "city": null["city"], "price": null["price"], "price_q": null["price"],
    }  # fmt: skip
    assert prepared.statistics.time_range_ms == (1_700_000_000_000, 1_700_000_319_000)


def test_the_range_of_early_datetimes_is_in_ms(job_of: JobOf) -> None:
    start = pl.datetime(1970, 1, 2)
    frame = clicks().with_columns(ts=start + pl.duration(seconds=pl.int_range(pl.len())))
    frame.write_csv("clicks.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    day_ms = 86_400_000
    assert prepare(job_of()).statistics.time_range_ms == (day_ms, day_ms + 319_000)


def test_a_feature_may_have_the_name_of_anothers_count(job_of: JobOf) -> None:
    frame = clicks()
    frame.write_csv("clicks.csv")
    columns = [
        {"name": "price", "encoder": "standardized"},
        {"name": "price.missing", "encoder": "vocabulary", "column": "city"},
    ]
    found = prepare(job_of(columns=columns)).statistics.splits["train"].columns
    null = frame.filter(pl.col("ts") < 1_700_000_320).null_count().row(0, named=True)
    assert (found["price"].missing, found["price.missing"].missing) == (null["price"], null["city"])


def test_missing_and_nan_features_are_no_errors(job_of: JobOf) -> None:
    frame = clicks()
    frame = frame.with_columns(
        price=pl.when(pl.col("user") < 10).then(float("nan")).otherwise("price")
    )
    frame.write_parquet("clicks.parquet")
    found = prepare(job_of({"source": "clicks.parquet"})).statistics.splits
    nan = frame["price"].is_nan().sum() + frame["price"].null_count()
    assert sum(split.columns["price"].missing for split in found.values()) == nan
    assert sum(split.columns["price_q"].missing for split in found.values()) == nan


def test_the_sample_holds_raw_rows_of_validation(job_of: JobOf) -> None:
    frame = clicks(60_000)
    frame.write_parquet("clicks.parquet")
    job = job_of({"source": "clicks.parquet"})
    sample = pl.read_parquet(prepare(job).sample)
    assert sample.columns == ["user", "city", "price", "click"]
    assert sample.height == 4096
    assert sample["click"].dtype == pl.Float32
    valid = frame.sort("ts")[48_000:54_000].with_columns(pl.col("click").cast(pl.Float32))
    assert sample.join(valid, on=sample.columns, how="anti", nulls_equal=True).height == 0


def test_sources_of_their_own_are_the_splits(job_of: JobOf) -> None:
    for name, rows in (("a", 100), ("b", 50), ("v", 40), ("t", 30)):
        clicks(rows, seed=ord(name)).write_parquet(f"{name}.parquet")
    data = {
        "source": None,
        "split": None,
        "train": ["b.parquet", "a.parquet"],
        "valid": "v.parquet",
    }
    prepared = prepare(job_of(data))
    assert prepared.splits == ("train", "valid")
    assert [len(prepared.dataset(split)) for split in prepared.splits] == [150, 40]
    prepared = prepare(job_of(data | {"test": "t.parquet"}))
    assert [len(prepared.dataset(split)) for split in prepared.splits] == [150, 40, 30]
    (batch,) = Reader(prepared.dataset("train"), 150, seed=0, shuffle=False).epoch(0)
    labels = pl.concat([clicks(50, seed=ord("b")), clicks(100, seed=ord("a"))])["click"]
    np.testing.assert_array_equal(batch.label, labels.to_numpy())


def test_text_groups_are_hashed_and_lists_encoded(
    job_of: JobOf, click_columns: list[dict[str, Any]]
) -> None:
    frame = clicks().with_columns(
        user=pl.col("user").cast(pl.String) + "x",
        tags=pl.concat_list("user", "ts").cast(pl.List(pl.String)),
    )
    frame.write_ndjson("clicks.ndjson")
    tags = {"name": "tags", "encoder": "hashed", "num_buckets": 9, "length": 3}
    prepared = prepare(job_of({"source": "clicks.ndjson"}, [*click_columns, tags], user="user"))
    (batch,) = Reader(prepared.dataset("train"), 1000, seed=0, shuffle=False).epoch(0)
    assert batch.codes.shape == (320, 6)
    assert (batch.codes[:, 3:5] > 0).all()
    assert (batch.codes[:, 5] == 0).all()
    users = frame.filter(pl.col("ts") < 1_700_000_320)["user"]
    assert batch.group is not None
    assert len(np.unique(batch.group)) == users.n_unique()
    pairs = set(zip(users, batch.group.tolist(), strict=True))
    assert len(pairs) == users.n_unique()


@pytest.mark.parametrize(
    "split",
    [
        {"by": "ratio"},
        {"by": "leave-one-out", "user": "user", "time": "ts"},
        {"by": "column", "column": "part"},
    ],
)
def test_every_rule_gives_each_row_to_one_split(split: dict[str, str], job_of: JobOf) -> None:
    frame = clicks().with_columns(part=pl.Series((["train"] * 6 + ["valid", "test"]) * 50))
    frame.write_csv("clicks.csv")
    prepared = prepare(job_of({"split": split}))
    assert sum(len(prepared.dataset(name)) for name in prepared.splits) == 400


def test_the_way_of_reading_changes_no_byte(monkeypatch: pytest.MonkeyPatch, job_of: JobOf) -> None:
    clicks(3000).write_csv("clicks.csv")
    job = job_of({"split": {"by": "ratio", "seed": 3}})
    first = prepare(job, Path("a"))
    for name, rows in (
        ("data.formats.CHUNK_ROWS", 100),
        ("preparing.staging.CHUNK_ROWS", 200),
        ("preparing.staging.PART_ROWS", 500),
    ):
        monkeypatch.setattr(f"headwater.pipelines.{name}", rows)
    monkeypatch.setattr("headwater.pipelines.data.delimited.BLOCK_BYTES", 4000)
    monkeypatch.setattr("headwater.pipelines.preparing.encoding.VALUES", 70)
    second = prepare(job, Path("b"))
    ours = {path.removeprefix("a/"): content for path, content in everything(Path("a")).items()}
    theirs = {path.removeprefix("b/"): content for path, content in everything(Path("b")).items()}
    assert ours == theirs
    assert first.schema == second.schema


# Use again, and never half.


def test_equal_jobs_and_inputs_use_the_same_folder_again(
    job_of: JobOf, click_columns: list[dict[str, Any]]
) -> None:
    clicks().write_csv("clicks.csv")
    first = prepare(job_of())
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert prepare(job_of()).path == first.path
    assert prepare(job_of({"negative_rate": 0.5})).path == first.path
    others = {"name": "other", "model": {"type": "dnn"}, "train": {"epochs": 1}}
    assert prepare(parse_job(job_of().model_dump(mode="json") | others)).path == first.path
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before
    assert first.path.parent == Path("prepared")
    assert prepare(job_of(columns=click_columns[:2])).path != first.path
    assert prepare(job_of({"filter": "user > 1"})).path != first.path
    clicks(seed=1).write_csv("clicks.csv")
    assert prepare(job_of()).path != first.path
    assert not list(Path("prepared").rglob(".tmp-*"))


@pytest.fixture
def prepared(job_of: JobOf) -> Prepared:
    clicks().write_csv("clicks.csv")
    return prepare(job_of())


@pytest.mark.parametrize(
    "name", ["schema.json", "statistics.json", "sample.parquet", "valid/manifest.json"]
)
def test_a_flipped_bit_beside_the_shards_is_refused_by_name(
    prepared: Prepared, name: str, job_of: JobOf
) -> None:
    path = prepared.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=f"{name}: the file is corrupt"):
        load_prepared(prepared.path)
    with pytest.raises(ShardError, match="Delete the folder"):
        prepare(job_of())


def test_a_flipped_bit_in_a_shard_is_refused_by_name(prepared: Prepared) -> None:
    path = prepared.path / "train" / "shard-00000.arrow"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"train/shard-00000\.arrow: the shard is corrupt"):
        load_prepared(prepared.path).dataset("train")


def test_a_folder_without_its_last_file_is_not_prepared_data(
    prepared: Prepared, job_of: JobOf
) -> None:
    (prepared.path / "prepared.json").unlink()
    with pytest.raises(ShardError, match=r"not prepared data: it has no prepared\.json"):
        load_prepared(prepared.path)
    with pytest.raises(ShardError, match=r"it has no prepared\.json\. Delete the folder"):
        prepare(job_of())
    (prepared.path / "prepared.json").write_text("{")
    with pytest.raises(ShardError, match=r"prepared\.json: cannot be read"):
        load_prepared(prepared.path)


def test_prepared_data_of_another_format_is_refused_with_the_remedy(prepared: Prepared) -> None:
    about = prepared.path / "prepared.json"
    about.write_text(about.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(ShardError, match=r"of format 1, .* reads 2\. Prepare and train again"):
        load_prepared(prepared.path)


SLOW_PREPARE = """
import sys, time
from pathlib import Path
from headwater.pipelines.preparing import staging
from headwater.pipelines.job import load_job
from headwater.pipelines.preparing.prepare import prepare
add = staging._PartWriter.add
def slow(self, frame):
    add(self, frame)
    print("staged", flush=True)
    time.sleep(60)
staging._PartWriter.add = slow
prepare(load_job("job.toml"))
"""


def started_and_staging(job_of: JobOf) -> subprocess.Popen[str]:
    write_job(job_of())
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PREPARE], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    return process


def test_a_killed_prepare_leaves_nothing_complete_and_the_next_cleans_up(
    job_of: JobOf, click_columns: list[dict[str, Any]]
) -> None:
    clicks().write_csv("clicks.csv")
    process = started_and_staging(job_of)
    folder = Path("prepared")
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
    # A prepare beside it that works leaves the other's folder alone.
    prepare(job_of(columns=click_columns[:2]))
    assert len(list(folder.glob(".tmp-*"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(folder.glob(".tmp-*"))) == 1
    assert not [path for path in folder.glob("[!.]*") if path.name == prepare_key(job_of)]
    prepared = prepare(job_of())
    assert not list(folder.glob(".tmp-*"))
    assert len(prepared.dataset("train")) == 320


def prepare_key(job_of: JobOf) -> str:
    return prepare(job_of(), Path("elsewhere")).path.name


def test_two_at_once_make_one(job_of: JobOf) -> None:
    clicks(2000).write_csv("clicks.csv")
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        paths = pool.starmap(prepare, [(job_of(),), (job_of(),)])
    assert len({prepared.path for prepared in paths}) == 1
    assert [path.name for path in Path("prepared").iterdir()] == [paths[0].path.name]
    assert len(load_prepared(paths[0].path).dataset("train")) == 1600


# A disk that is full.

FULL_DISK = """
mount -t tmpfs -o size=256k headwater disk || exit 77
echo kept > disk/other
"$1" -c '
from pathlib import Path
from headwater.feature_store.errors import OutputError
from headwater.pipelines.job import load_job
from headwater.pipelines.preparing.prepare import prepare
try:
    prepare(load_job("job.toml"), Path("disk"))
except OutputError as error:
    print(error)
'
ls -A disk
"""


def test_a_full_disk_is_told_and_nothing_is_kept(job_of: JobOf) -> None:
    clicks(40_000).write_parquet("clicks.parquet")
    write_job(job_of({"source": "clicks.parquet"}))
    Path("disk").mkdir()
    # A name space of its own: the small file system is gone with the child.
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", FULL_DISK, "sh", sys.executable]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, which is not on this machine")
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in child.stderr or child.returncode == 77:
        pytest.skip(f"no file system can be mounted here: {child.stderr}")
    message, *left = child.stdout.splitlines()
    assert message.startswith("disk/"), child.stderr
    assert "No space left" in message
    assert left == ["other"]


FILE_LIMIT = """
import resource, signal, sys
from headwater.feature_store.errors import OutputError
from headwater.pipelines.job import load_job
from headwater.pipelines.preparing.prepare import prepare
job = load_job("job.toml")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
try:
    prepare(job)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [10_000, 400_000])
def test_a_file_that_may_not_grow_is_told_and_nothing_is_kept(limit: int, job_of: JobOf) -> None:
    clicks(40_000).write_parquet("clicks.parquet")
    write_job(job_of({"source": "clicks.parquet"}))
    before = sorted(Path().iterdir())
    child = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(limit)], capture_output=True, text=True, check=False
    )
    assert "prepared/" in child.stdout, child.stderr
    assert "cannot be written" in child.stdout
    assert sorted(Path().iterdir()) == before


def test_a_root_that_is_a_file_is_told(job_of: JobOf) -> None:
    clicks().write_csv("clicks.csv")
    with pytest.raises(OutputError, match=r"clicks\.csv: cannot be written"):
        prepare(job_of(), Path("clicks.csv"))


PEAK = """
import json
from pathlib import Path
from headwater.pipelines.job import load_job
from headwater.pipelines.preparing.prepare import prepare
rows = prepare(load_job("job.toml")).statistics.splits["train"].rows
# Not ru_maxrss: it begins at the peak of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([rows, int(status["VmHWM"].split()[0])]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_memory_does_not_grow_with_rows(suffix: str, job_of: JobOf) -> None:
    peaks: list[float] = []
    # With less, a run ends before all of its buffers have been full at once.
    for factor in (2, 8):
        Path("data").mkdir(exist_ok=True)
        for number in range(factor):
            frame = clicks(1_000_000, seed=number)
            path = f"data/{number}.{suffix}"
            frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
        # Few are held out: each split fills a shard in memory, which is bounded but not yet full here.
        split = {"by": "time", "column": "ts", "valid": 0.01, "test": 0.01}
        write_job(job_of({"source": f"data/*.{suffix}", "split": split}, user="user", time="ts"))
        # The median of three: which threads are busy at once moves a peak by some 60 MiB.
        found: list[int] = []
        for attempt in range(3):
            shutil.rmtree("prepared", ignore_errors=True)
            child = subprocess.run(
                [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True
            )
            rows, peak = json.loads(child.stdout)
            assert rows > 0.75e6 * factor, attempt
            found.append(peak)
        peaks.append(median(found))
    print(
        f"{suffix}: peak {peaks[0] / 1024:.0f} MiB, at four times the rows {peaks[1] / 1024:.0f} MiB"
    )
    assert peaks[1] <= 1.1 * peaks[0]
