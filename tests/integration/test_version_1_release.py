"""A release of manifest version 1, as an earlier Headwater (527f4d1) wrote it, is still served and scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.serving.kinds.scorer import Scorer
from headwater.serving.release import load_release
from headwater.serving.signature import columns_to_arrays

RELEASE = Path(__file__).resolve().parents[1] / "old_releases" / "v1" / "shop-v1" / "1"
SAME = 1e-6


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """Return the golden rows as the file has them, whatever reads it today."""
    manifest = json.loads((RELEASE / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    return manifest["golden"]


def test_it_loads_with_its_golden_rows(golden: dict[str, Any]) -> None:
    scorer = load_release(RELEASE, Scorer)
    assert (scorer.manifest.name, scorer.manifest.version) == ("shop-v1", 1)
    scores = scorer.score(columns_to_arrays(scorer.graph.inputs, golden["rows"]))
    np.testing.assert_allclose(scores, golden["scores"], rtol=0, atol=SAME)


def test_it_is_served(
    golden: dict[str, Any],
    serving: Callable[..., Any],
    ask: Callable[..., tuple[int, Any]],
    wait_ready: Callable[[str], None],
) -> None:
    with serving(RELEASE.parent.parent) as url:
        wait_ready(f"{url}/v2/health/ready")
        request = {"model": "shop-v1", "candidates": golden["rows"]}
        status, answer = ask(f"{url}/v1/rank", request)
    assert status == 200, answer
    np.testing.assert_allclose(answer["scores"], golden["scores"], rtol=0, atol=SAME)


def test_it_scores_a_file(
    golden: dict[str, Any], headwater: Callable[..., Any], tmp_path: Path
) -> None:
    pl.DataFrame(golden["rows"], strict=False).write_parquet(tmp_path / "in.parquet")
    headwater("score", RELEASE, "in.parquet", "out.parquet", cwd=tmp_path)
    scores = pl.read_parquet(tmp_path / "out.parquet")["prob"]
    np.testing.assert_allclose(scores, golden["scores"], rtol=0, atol=SAME)
