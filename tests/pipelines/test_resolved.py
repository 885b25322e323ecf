"""What a job leaves open about its tables, and how it is settled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headwater.pipelines.job import Job
from headwater.pipelines.resolved import resolve


@pytest.mark.parametrize(("processes", "mode", "lr"), [(None, "lazy", 1e-3), (2, "fused", 0.02)])
def test_tables_are_lazy_in_one_process_and_fused_in_several(
    processes: int | None,
    mode: str,
    lr: float,
    tiny_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
    sparse = resolve(tiny_job(sparse={"l2": 0.1})).train.sparse
    assert (sparse.mode, sparse.lr, sparse.l2) == (mode, lr, 0.1)


def test_what_a_job_says_about_its_tables_stays(tiny_job: Callable[..., Job]) -> None:
    sparse = resolve(tiny_job(sparse={"mode": "fused", "lr": 0.5})).train.sparse
    assert (sparse.mode, sparse.lr) == ("fused", 0.5)
    assert resolve(tiny_job(sparse={"mode": "fused"})).train.sparse.lr == 0.02
    assert resolve(tiny_job(sparse={"mode": "dense"})).train.sparse.lr == 1e-3
