"""`headwater budgets`: the audit log of decisions."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from headwater.pipelines.console import emit
from headwater.pipelines.options import AsJson

app = App(name="budgets", help="Budgets of advertising channels: check the log of decisions.")


@app.command(name="audit")
def audit(log: Path, *, json: AsJson = False) -> None:
    """Check that no decision of an audit log was changed, left out, put in or moved.

    Parameters
    ----------
    log
        Audit log of one advertiser: a JSON object a line, the oldest first.
    """
    from headwater.pipelines.budgets.audit import read_log, verify

    count = verify(read_log(log))
    emit(
        {"log": log, "decisions": count, "verified": True},
        as_json=json,
        text=f"{log}: {count:,} decisions, none changed, left out, put in or moved",
    )
