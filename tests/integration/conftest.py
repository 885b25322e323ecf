"""A shop's small but genuine logs, and the `headwater` command over them, alone or in this process.

The logs hold every kind of raw column, side tables to join, missing, NaN and unseen values, and a signal
that a model must find: who buys what at which price. Runs are made once and shared; whoever damages a file
puts it back.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pytest

from headwater.pipelines.cli import main

HEADWATER = Path(sys.executable).with_name("headwater")
NUM_ROWS, NUM_TEST = 4000, 800
HANGS_S = 240
"""Seconds after which a command or a service hangs; the busiest machine needs fewer."""

JOB = """
name = "shop"

[data]
root = "{root}"
source = "events.parquet"
split = {{ by = "time", column = "ts", valid = 0.2, test = 0.2 }}
derive = {{ label = "rating >= 4" }}

[[data.join]]
path = "users.csv"
on = "user_id"

[[data.join]]
path = "items.parquet"
on = "item_id"

[features]
label = "label"
user = "user_id"
item = "item_id"
time = "ts"
columns = [
    {{ name = "user_id", encoder = "vocabulary" }},
    {{ name = "item_id", encoder = "vocabulary", min_count = 2 }},
    {{ name = "query", encoder = "hashed", num_buckets = 50 }},
    {{ name = "price", encoder = "standardized" }},
    {{ name = "price_level", column = "price", encoder = "quantiles", num_buckets = 8 }},
    {{ name = "age", encoder = "quantiles", num_buckets = 5 }},
    {{ name = "country", encoder = "vocabulary" }},
    {{ name = "genres", encoder = "vocabulary", length = 3 }},
    {{ name = "tags", encoder = "vocabulary", length = 2, keep = "head", pooling = "mean" }},
    {{ name = "hour", column = "ts", encoder = "calendar", part = "hour" }},
    {{ name = "country_x_price", encoder = "crossed", columns = ["country", "price_level"] }},
]

[model]
type = "finalmlp"
embedding_dim = 8
hidden_1 = [32]
hidden_2 = [16]
num_heads = 2
gate_hidden = [16]
gate_1_context = ["user_id"]
gate_2_context = ["item_id"]

[train]
batch_size = 128
epochs = 4
device = "cpu"
sparse = {{ lr = 0.05 }}

[export]
context = ["user_id", "age", "country", "ts"]
"""

VARIANTS: dict[str, tuple[str, ...]] = {
    "finalmlp-fused": ("train.sparse.mode=fused",),
    "finalmlp-dense": ("train.sparse.mode=dense", "train.sparse.lr=0.01"),
    "deepfm-lazy": (
        'model={type="deepfm", embedding_dim=8, hidden=[32, 16]}',
        "train.sparse.lr=0.01",
    ),
    "deepfm-dense": (
        'model={type="deepfm", embedding_dim=8, hidden=[32, 16]}',
        "train.sparse.mode=dense",
        "train.sparse.lr=0.01",
    ),
}
"""The same job with two models in all table modes, as `--set` values."""


@dataclass(frozen=True)
class Shop:
    """A folder with logs and job, in which commands ran; `joined` is what a client knows of the test rows."""

    path: Path
    joined: pl.DataFrame

    @property
    def job(self) -> Path:
        return self.path / "job.toml"


@dataclass(frozen=True)
class Made:
    """What `headwater run --json` said of one variant."""

    run: Path
    release: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def headwater() -> Callable[..., Any]:
    """Give a function that runs a command in a folder and returns its JSON and its messages."""

    def call(*arguments: str | Path, cwd: Path, status: int = 0) -> tuple[dict[str, Any], str]:
        done = subprocess.run(
            [HEADWATER, *map(str, arguments), "--json"],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
            check=False,
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return call


@pytest.fixture(scope="session")
def in_process() -> Callable[..., Any]:
    """Give `headwater` for this process, which loads torch and its exporter only once."""

    def call(*arguments: str | Path, cwd: Path, status: int = 0) -> tuple[dict[str, Any], str]:
        shown, said = io.StringIO(), io.StringIO()
        with chdir(cwd), redirect_stdout(shown), redirect_stderr(said):
            found = main([*map(str, arguments), "--json"])
        assert found == status, f"{arguments}: {found}\n{said.getvalue()}"
        return json.loads(shown.getvalue().splitlines()[-1]), said.getvalue()

    return call


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Write the logs and the job; nothing has run yet."""
    path = tmp_path_factory.mktemp("shop")
    tables = make_tables()
    tables["events"].write_parquet(path / "events.parquet")
    tables["items"].write_parquet(path / "items.parquet")
    tables["users"].write_csv(path / "users.csv")
    (path / "job.toml").write_text(JOB.format(root=path))
    joined = (
        tables["events"]
        .tail(NUM_TEST)
        .join(tables["users"], on="user_id", how="left", maintain_order="left")
        .join(tables["items"], on="item_id", how="left", maintain_order="left")
    )
    return Shop(path, joined)


def make_tables(num_rows: int = NUM_ROWS) -> dict[str, pl.DataFrame]:
    """Return events in order of time, users and items."""
    random = np.random.default_rng(11)
    num_users, num_items = 60, 90
    users = pl.DataFrame(
        {
            "user_id": range(num_users - 2),  # two users are in the events only
            "age": [None if i % 9 == 0 else float(18 + i % 50) + 0.5 for i in range(num_users - 2)],
            "country": [
                None if i % 11 == 0 else ("de", "fr", "ä")[i % 3] for i in range(num_users - 2)
            ],
        }
    )
    items = pl.DataFrame(
        {
            "item_id": range(num_items),
            "genres": [list(range(i % 5)) for i in range(num_items)],
        },
        schema_overrides={"genres": pl.List(pl.Int64)},
    )
    user = random.integers(0, num_users, num_rows)
    # The newest items and words are unknown to training.
    late = np.arange(num_rows) > num_rows - 300
    item = np.where(late, random.integers(0, num_items, num_rows), random.integers(0, 80, num_rows))
    price = np.round(random.lognormal(3, 1, num_rows), 2)
    words = np.array(["shoe", "hat", "größe 41", "coat"])
    taste = random.normal(0, 1.5, num_users)[user] + random.normal(0, 1.5, num_items)[item]
    score = taste - 0.8 * (np.log(price) - 3) + random.normal(0, 0.6, num_rows)
    tag_names = ["new", "sale", "used"]
    events = pl.DataFrame(
        {
            "ts": 1_700_000_000_000 + np.cumsum(random.integers(1000, 9_000_000, num_rows)),
            "user_id": user,
            "item_id": item,
            "query": [None if i % 7 == 0 else str(words[i % 4]) for i in range(num_rows)],
            "price": [
                None if i % 13 == 0 else float("nan") if i % 17 == 0 else float(p)
                for i, p in enumerate(price)
            ],
            "tags": [
                None if i % 19 == 0 else [tag_names[(i + k) % 3] for k in range(i % 4)]
                for i in range(num_rows)
            ],
            "rating": np.clip(np.round(3.3 + score), 1, 5).astype(np.int8),
        }
    )
    return {
        "events": events.with_columns(pl.col("ts").cast(pl.Datetime("ms"))),
        "users": users,
        "items": items,
    }


@pytest.fixture(scope="session")
def made(shop: Shop, in_process: Callable[..., Any]) -> Callable[[str], Made]:
    """Give a function from the name of a variant to its run and release, made at the first call."""

    @cache
    def make(variant: str) -> Made:
        values = [f"export.name={variant}", *VARIANTS[variant]]
        sets = [part for value in values for part in ("--set", value)]
        result, _ = in_process("run", shop.job, *sets, cwd=shop.path)
        return Made(shop.path / result["run"], shop.path / result["release"], result)

    return make


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """Give a context manager that serves a folder in a process of its own and gives its address."""

    @contextmanager
    def serve(
        releases: Path,
        command: tuple[str | Path, ...] = (HEADWATER,),
        stderr: IO[str] | None = None,
    ) -> Generator[str]:
        service = subprocess.Popen(
            [*command, "serve", releases, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert service.stdout is not None
        try:
            yield json.loads(service.stdout.readline())["url"]
        finally:
            service.send_signal(signal.SIGTERM)
            service.communicate(timeout=HANGS_S)

    return serve


@pytest.fixture(scope="session")
def ask() -> Callable[..., Any]:
    """Give a function that sends JSON (without a body: GET) and returns the status and the answer."""

    def send(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data), timeout=HANGS_S
            ) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read())

    return send


@pytest.fixture(scope="session")
def wait_ready(ask: Callable[..., tuple[int, Any]]) -> Callable[[str], None]:
    """Give a function that waits until an address of a service answers with status 200."""

    def wait(url: str) -> None:
        deadline_s = time.monotonic() + HANGS_S
        while ask(url)[0] != 200:
            assert time.monotonic() < deadline_s, f"{url} is not ready"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Give a function that tells what is in a folder: a hash of each file, and a mark for each folder."""

    def look(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): "folder"
            if path.is_dir()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
        }

    return look


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], snapshot: Callable[[Path], dict[str, str]]
) -> Callable[..., str]:
    """Give a function that runs a command in this process, in the current folder, and returns its message.

    The command must end with `status`, say all of `says`, and leave the folder `inside` as it was.
    """

    def check(*arguments: str | Path, says: tuple[str, ...], inside: Path, status: int = 2) -> str:
        before = snapshot(inside)
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == status
        shown = capsys.readouterr()
        message: str = json.loads(shown.out.splitlines()[-1])["error"]
        told = "".join(f"headwater: {line}\n" for line in message.splitlines())
        assert shown.err.endswith(told)
        assert "Traceback" not in shown.err
        for part in says:
            assert part in message
        assert snapshot(inside) == before
        return message

    return check


def writes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Tell whether an audit event announces a call that changes what is in a folder."""
    if event == "open":
        flags = arguments[2]
        is_change = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    else:
        is_change = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
    if not is_change or not isinstance(arguments[0], str | os.PathLike):
        return False
    # A name relative to an open folder counts as one of the current folder.
    return str(Path(arguments[0]).absolute()).startswith(f"{folder}/")


KILLED = f"""
import os, signal, sys
from pathlib import Path
from typing import Any
{inspect.getsource(writes)}
folder, left = os.getcwd(), int(sys.argv[1])
def hook(event, arguments):
    global left
    if writes(event, arguments, folder):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from headwater.pipelines.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def killed() -> Callable[..., None]:
    """Give a function that runs a command in the current folder, and kills it before its n-th call."""

    def run(*arguments: str | Path, before_call: int) -> None:
        command = [sys.executable, "-c", KILLED, str(before_call), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, check=False)
        assert done.returncode == -signal.SIGKILL, f"{arguments}: not killed\n{done.stderr}"

    return run


@pytest.fixture(scope="session")
def calls() -> Callable[..., list[tuple[str, int]]]:
    """Give a function that lists the calls of `act` that change what is in the current folder.

    A call is its path, and what `sample` gave before it.
    """
    sampling: Callable[[], int] | None = None
    found: list[tuple[str, int]] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if sampling is not None and writes(event, arguments, str(Path.cwd())):
            found.append((str(arguments[0]), sampling()))

    sys.addaudithook(hook)  # which stays, and does nothing at other times

    def run(
        act: Callable[[], object], sample: Callable[[], int] = lambda: 0
    ) -> list[tuple[str, int]]:
        nonlocal sampling
        found.clear()
        sampling = sample
        try:
            act()
        finally:
            sampling = None
        return list(found)

    return run


@pytest.fixture
def chance() -> random.Random:
    """Return a generator whose seed is printed; KILL_SEED sets it."""
    seed = int(os.environ.get("KILL_SEED") or random.randrange(2**32))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)
