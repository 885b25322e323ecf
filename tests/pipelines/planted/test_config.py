"""Settings that cannot be planted are refused by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.planted.config import PlantedConfig


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["row=5"], "--set: row: unknown key. Did you mean 'rows'?"),
        (["rows=many"], "--set: rows: expected a valid integer"),
        (["rows"], "expected key.path=value"),
        (["useless_ids=1"], "--set: useless_ids: expected less than 1, found 1"),
        (["noise=-1"], "--set: noise: expected greater than or equal to 0, found -1"),
        (["id_effects=[1, -1]"], "--set: id_effects[1]: expected greater than or equal to 0"),
        (["id_effects=[2, 1]"], "--set: id_effects: expected [least, most], found [2.0, 1.0]"),
        (["fields=6"], "--set: fields: expected at least 7, small_fields and useless_fields"),
        (["memorised=11"], "--set: memorised: expected at most 10, the pairs of 5 small fields"),
        (["factorised=11"], "--set: factorised: expected at most 10, the pairs of 5 large fields"),
        (["ids=263"], "--set: ids: found 263, which leaves fewer than two useful values"),
        (["ids=270", "useless_ids=.5"], "--set: ids: found 270"),
        (
            ["fields=5", "useless_fields=0", "factorised=0"],
            "--set: ids: expected 250, those of the small fields",
        ),
        (["rows=4"], "--set: valid and test: of 4 rows they leave"),
        (["valid=.5", "test=.5"], "--set: valid and test: of 250000 rows they leave"),
    ],
    ids=" ".join,
)
def test_wrong_setting_is_named(
    settings: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for setting in settings for word in ("--set", setting)]
    assert main(["datasets", "make", "planted", str(tmp_path / "out"), *given]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_are_divided_without_loss() -> None:
    config = PlantedConfig(rows=1001, valid=0.2, test=0.05)
    assert config.split == {"train": 751, "valid": 200, "test": 50}


def test_fields_of_one_kind_are_enough() -> None:
    small = PlantedConfig(
        fields=2, small_fields=2, useless_fields=0, ids=100, memorised=1, factorised=0
    )
    assert small.large_fields == 0
    large = PlantedConfig(fields=2, small_fields=0, useless_fields=0, memorised=0, factorised=1)
    assert large.large_fields == 2
