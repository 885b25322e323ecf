"""`headwater budgets audit`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headwater.pipelines.budgets.learning import Settings
from headwater.pipelines.budgets.ledger import advance
from headwater.pipelines.budgets.records import Channel, Constraints, Put, Tick
from headwater.pipelines.cli import main


def test_audit_counts_the_decisions_and_names_a_changed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Constraints("EUR", 24_000, (Channel("search"), Channel("social")))
    done = advance(None, [Put(1, 0, asked), Tick(0), Tick(1)], Settings())
    log = tmp_path / "audit.ndjson"
    content = b"\n".join(msgspec.json.encode(decision) for decision in done.decisions)
    log.write_bytes(content)
    assert main(["budgets", "audit", str(log), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["decisions"] == 2
    log.write_bytes(content.replace(b'"left":', b'"left":1'))
    assert main(["budgets", "audit", str(log)]) == 2
    assert "it was changed after it was made" in capsys.readouterr().err
    assert main(["budgets", "audit", str(tmp_path / "none")]) == 2
