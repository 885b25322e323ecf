"""Commands over a run that exists: what they take up of the job as it is now, and what they refuse."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest

InProcess = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def first(made: Callable[[str], Any]) -> Any:
    return made("finalmlp-fused")


def test_the_job_of_a_run_holds_the_defaults_of_its_model_too(first: Any) -> None:
    model = tomllib.loads((first.run / "job.toml").read_text())["model"]
    assert model["type"] == "finalmlp"
    assert "dropout_1" in model
    assert model["use_gates"] is True


def test_export_takes_its_own_settings_anew(shop: Any, first: Any, in_process: InProcess) -> None:
    result, said = in_process(
        "export", "--run", first.run, "--set", "export.name=renamed", cwd=shop.path
    )
    assert result["release"] == "releases/renamed/1"
    assert str(first.run) in said


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_what_training_has_fixed_is_not_changed_later(
    command: str, shop: Any, first: Any, in_process: InProcess
) -> None:
    result, _ = in_process(
        command, "--run", first.run, "--set", "train.epochs=9", cwd=shop.path, status=2
    )
    assert "train.epochs cannot change" in result["error"]


def test_a_run_found_by_its_job_is_named_with_what_differs(
    shop: Any, first: Any, in_process: InProcess
) -> None:
    changed = ["--set", "train.epochs=9", "--set", "export.name=later"]
    result, said = in_process("export", shop.job, *changed, cwd=shop.path)
    assert result["release"] == "releases/later/1"
    assert "run      runs/shop/" in said
    assert "trained with other settings" in said
    assert "train.epochs" in said
