"""Two processes against one: the same training, whichever way the tables are cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHARDINGS = ["table_wise", "row_wise"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], dict[str, Any]]:
    """Run one and two processes; return what rank 0 saw, by world size and sharding."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "one_rank.py"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(world_size), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for world_size in (1, 2)
        for rank in range(world_size)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return lambda world_size, sharding: torch.load(folder / f"{world_size}-{sharding}.pt")


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_ranks_with_half_a_batch_each_train_as_one_with_all_of_it(
    runs: Callable[[int, str], dict[str, Any]], sharding: str
) -> None:
    one, two = runs(1, "table_wise"), runs(2, sharding)
    assert two["shardings"] == [sharding]
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-5)
    for key in ("tables", "weights"):
        for name, value in one[key].items():
            torch.testing.assert_close(two[key][name], value, atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_distributed_checkpoint_resumes_bit_by_bit(
    runs: Callable[[int, str], dict[str, Any]], world_size: int, sharding: str
) -> None:
    seen = runs(world_size, sharding)
    assert seen["losses_resumed"] == seen["losses"]


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_penalty_of_fused_rows_works_on_two_ranks(
    runs: Callable[[int, str], dict[str, Any]], sharding: str
) -> None:
    # A row that only one rank reads is decayed half as much, so the runs differ a little.
    one, two = runs(1, sharding), runs(2, sharding)
    assert two["losses_l2"] == pytest.approx(one["losses_l2"], abs=5e-3)
    assert two["losses_l2"][1:] != pytest.approx(two["losses"][1:3], abs=1e-5)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_pruned_tables_train_on_two_ranks_as_on_one(
    runs: Callable[[int, str], dict[str, Any]], sharding: str
) -> None:
    one, two = runs(1, sharding), runs(2, sharding)
    assert two["losses_pruned"] == pytest.approx(one["losses_pruned"], abs=2e-5)
    assert one["losses_pruned"][-1] < one["losses_pruned"][0]


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_chosen_interactions_train_on_two_ranks_as_on_one(
    runs: Callable[[int, str], dict[str, Any]], sharding: str
) -> None:
    one, two = runs(1, sharding), runs(2, sharding)
    assert two["losses_interacting"] == pytest.approx(one["losses_interacting"], abs=2e-5)
    assert one["losses_interacting"][-1] < one["losses_interacting"][0]


@pytest.mark.parametrize("mode", ["dense", "lazy"])
def test_plain_tables_refuse_more_than_one_rank(
    runs: Callable[[int, str], dict[str, Any]], mode: str
) -> None:
    refused = runs(2, "table_wise")["refusals"][mode]
    assert f"train.sparse.mode = '{mode}' trains in one process, but 2 were started" in refused
    assert "Set train.sparse.mode = 'fused'" in refused
    assert runs(1, "table_wise")["refusals"][mode] is None
