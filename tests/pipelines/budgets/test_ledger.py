"""The ledger: the total is never exceeded, whatever comes in whatever order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.feature_store.errors import DataError, InputError
from headwater.pipelines.budgets.audit import read_log, verify
from headwater.pipelines.budgets.learning import Settings
from headwater.pipelines.budgets.ledger import Advanced, advance, exposure, record_of
from headwater.pipelines.budgets.records import (
    Applied,
    Channel,
    Constraints,
    Conversion,
    Decision,
    Put,
    Record,
    Spend,
    Tick,
    parse_constraints,
)
from headwater.pipelines.budgets.state import decode

SETTINGS = Settings(arms=9)
NAMES = ("search", "social", "video")


def constraints(total: int = 24_000, *channels: Channel, **others: object) -> Constraints:
    found = channels or tuple(Channel(name) for name in NAMES)
    values = {"currency": "EUR", "total": total, "channels": found, "periods_per_cycle": 4}
    return Constraints(**(values | others))  # pyright: ignore[reportArgumentType]


def spend(period: int, channel: str, micros: int, **others: object) -> Spend:
    values = {"id": f"s-{period}-{channel}-{micros}", "currency": "EUR", **others}
    return Spend(channel=channel, period=period, micros=micros, **values)  # pyright: ignore[reportArgumentType]


def start(asked: Constraints | None = None) -> Advanced:
    return advance(None, [Put(1, 0, asked or constraints()), Tick(0)], SETTINGS)


def amounts(decision: Decision) -> dict[str, int]:
    return {each.channel: each.micros for each in decision.allocations}


def day(
    periods: int, asked: Constraints | None = None, scale: tuple[float, ...] = (3.0, 1.5, 0.3)
) -> tuple[list[Record], list[Decision]]:
    """Let channels spend their budgets and bring scale * sqrt(budget); return all records and decisions."""
    records: list[Record] = [Put(1, 0, asked or constraints())]
    done = advance(None, records, SETTINGS)
    decisions: list[Decision] = []
    for period in range(periods):
        new: list[Record] = [Tick(period)]
        ticked = advance(done.state, new, SETTINGS)
        budgets = amounts(ticked.decisions[0])
        decisions += ticked.decisions
        reports: list[Record] = []
        for name, size in zip(NAMES, scale, strict=True):
            value = int(size * 80 * np.sqrt(budgets[name]))
            reports += [
                spend(period, name, budgets[name], final=True),
                Conversion(f"c-{period}-{name}", name, period, value),
            ]
        done = advance(ticked.state, reports, SETTINGS)
        assert done.rejected == []
        records += [*new, *reports]
    return records, decisions


def test_budgets_of_a_cycle_add_up_to_its_total_and_move_to_the_better_channel() -> None:
    _, decisions = day(40)
    for cycle in range(10):
        spent = sum(sum(amounts(each).values()) for each in decisions[4 * cycle : 4 * cycle + 4])
        assert 23_000 < spent <= 24_000
    last = {name: sum(amounts(each)[name] for each in decisions[20:]) for name in NAMES}
    assert last["search"] > last["social"] > last["video"]


def test_any_cut_of_the_records_gives_bitwise_the_same() -> None:
    records, decisions = day(12)
    whole = advance(None, records, SETTINGS)
    assert whole.decisions == decisions
    state, found = None, list[Decision]()
    for record in records:
        step = advance(state, [record], SETTINGS)
        state, found = step.state, found + step.decisions
    assert found == decisions
    assert state == whole.state


@given(data=st.data(), needs_applied=st.booleans())
@settings(max_examples=60, deadline=None)
def test_total_is_kept_under_any_order_duplicates_and_restarts(
    data: st.DataObject, needs_applied: bool
) -> None:
    total = 10_007
    asked = constraints(total, *(Channel(name) for name in NAMES), needs_applied=needs_applied)
    done, number, period, sent = start(asked), 1, 0, list[Record]()
    for step in range(data.draw(st.integers(1, 25))):
        kind = data.draw(st.sampled_from(["tick", "spend", "again", "applied", "put", "value"]))
        name = data.draw(st.sampled_from(NAMES))
        state = decode(done.state)
        of = data.draw(st.sampled_from(sorted(state.accounts)))
        account = state.account(of, name)
        if kind == "tick":
            # A clock that steps back sends an old tick.
            record: Record = Tick(period + data.draw(st.integers(-2, 1)))
            period = max(period, record.period)
        elif kind == "spend":
            room = account.in_force - account.reported
            share = data.draw(st.integers(0, 4))
            record = spend(of, name, max(0, room) * share // 4, id=f"{step}")
        elif kind == "again" and sent:
            record = data.draw(st.sampled_from(sent))
        elif kind == "applied":
            record = Applied(f"{step}", name, of, account.allocated)
        elif kind == "put":
            bounds = Channel(name, ceiling=data.draw(st.integers(0, 3000)))
            rest = (Channel(each) for each in NAMES if each != name)
            total += data.draw(st.integers(0, 500))
            number += 1
            changed = constraints(total, bounds, *rest, needs_applied=needs_applied)
            record = Put(number, period, changed)
        else:
            record = Conversion(f"{step}", name, of, data.draw(st.integers(0, 5000)))
        if kind != "again":
            sent.append(record)
        done = advance(done.state, [record], SETTINGS)
        assert exposure(done.state) <= total
        for decision in done.decisions:
            assert decision.left >= 0
            assert all(each.micros >= 0 for each in decision.allocations)


def test_unreported_spend_is_kept_until_a_report_is_final() -> None:
    first = start(constraints(4_000, Channel("search"), periods_per_cycle=2))
    assert amounts(first.decisions[0]) == {"search": 2_000}
    open_ = advance(first.state, [spend(0, "search", 500), Tick(1)], SETTINGS)
    assert amounts(open_.decisions[0]) == {"search": 2_000}
    closed = advance(first.state, [spend(0, "search", 500, final=True), Tick(1)], SETTINGS)
    assert amounts(closed.decisions[0])["search"] > 2_000


def test_channel_above_its_budget_lowers_what_is_left_and_raises_an_alarm() -> None:
    first = start(constraints(4_000, Channel("search"), periods_per_cycle=2))
    second = advance(first.state, [spend(0, "search", 3_500, final=True), Tick(1)], SETTINGS)
    assert amounts(second.decisions[0])["search"] <= 500
    assert any("above its budget 2000" in alarm for alarm in second.decisions[0].alarms)


def test_total_below_what_is_spent_stops_spending_and_says_so() -> None:
    first = start()
    spent: list[Record] = [spend(0, name, 1_000) for name in NAMES]
    lowered = advance(first.state, [*spent, Put(2, 0, constraints(2_000))], SETTINGS)
    (decision,) = lowered.decisions
    assert any("3000 micros are spent, the total is 2000" in alarm for alarm in decision.alarms)
    after = advance(lowered.state, [Tick(1)], SETTINGS).decisions[0]
    assert sum(amounts(after).values()) == 0


def test_budget_that_is_cut_in_a_period_leaves_something_for_every_later_one() -> None:
    first = start()
    spent: list[Record] = [spend(0, name, 900, final=True) for name in NAMES]
    done = advance(first.state, [*spent, Put(2, 0, constraints(9_000))], SETTINGS)
    sums = list[int]()
    for period in (1, 2, 3):
        done = advance(done.state, [Tick(period)], SETTINGS)
        sums.append(sum(amounts(done.decisions[0]).values()))
    assert min(sums) > 0
    assert 2_700 + sum(sums) <= 9_000


def test_one_whale_does_not_starve_four_small_channels() -> None:
    names = ("whale", "a", "b", "c", "d")
    channels = (Channel("whale"), *(Channel(name, floor=100) for name in names[1:]))
    done = start(constraints(8_000, *channels, periods_per_cycle=2))
    reports: list[Record] = [spend(0, name, 100, final=True) for name in names[1:]]
    whale, lower = (
        spend(0, "whale", 3_000, final=True),
        constraints(6_000, *channels, periods_per_cycle=2),
    )
    cut = advance(done.state, [whale, *reports, Put(2, 0, lower)], SETTINGS)
    after = amounts(advance(cut.state, [Tick(1)], SETTINGS).decisions[0])
    assert all(after[name] >= 100 for name in names[1:])


def test_floors_ceilings_fixed_and_held_channels_are_kept_with_the_reason() -> None:
    channels = (
        Channel("search", floor=1_000),
        Channel("social", ceiling=1_500),
        Channel("video", fixed=700),
    )
    first = start(constraints(24_000, *channels))
    reasons = {each.channel: (each.micros, each.bound) for each in first.decisions[0].allocations}
    assert reasons["video"] == (700, "fixed")
    assert reasons["social"][0] <= 1_500
    assert reasons["search"][0] >= 1_000
    held = (Channel("search", hold=True), *channels[1:])
    after = advance(first.state, [Put(2, 1, constraints(24_000, *held)), Tick(1)], SETTINGS)
    allocation = after.decisions[0].allocations[0]
    assert (allocation.micros, allocation.bound) == (reasons["search"][0], "hold")


def test_change_is_bounded_from_period_to_period() -> None:
    _, decisions = day(12, constraints(24_000, max_change=0.1))
    for before, after in pairwise(decisions[1:]):
        for name in NAMES:
            old, new = amounts(before)[name], amounts(after)[name]
            assert old == 0 or new <= old * 1.1


def test_channel_that_disappears_gets_nothing_and_its_money_is_used() -> None:
    first = start()
    rest = tuple(Channel(name) for name in NAMES[:2])
    gone = advance(first.state, [Put(2, 1, constraints(24_000, *rest)), Tick(1)], SETTINGS)
    found = amounts(gone.decisions[0])
    assert found["video"] == 0
    assert sum(found.values()) == 6_000
    back = advance(gone.state, [Put(3, 2, constraints()), Tick(2)], SETTINGS)
    assert set(amounts(back.decisions[0])) == set(NAMES)


def test_silent_channel_and_target_out_of_reach_raise_alarms() -> None:
    asked = constraints(24_000, target_roi=50.0)
    _, decisions = day(30, asked)
    assert any("target ROI 50 is out of reach" in a for each in decisions for a in each.alarms)
    first = start()
    later = advance(first.state, [Tick(1), Tick(2)], SETTINGS)
    assert any("no spend was reported" in alarm for alarm in later.decisions[-1].alarms)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Tick(0), "period 0 runs already"),
        (Put(3, 0, constraints()), "expected 2: another writer was first"),
        (Put(2, 0, constraints(24_000, currency="USD")), "currency: found 'USD', expected 'EUR'"),
        (spend(0, "radio", 1), "unknown channel 'radio'; known are search, social, video"),
        (spend(0, "video", 1, currency="USD"), "currency 'USD', expected 'EUR'"),
        (spend(90, "video", 1), "period 90 is outside 0 to 4"),
        (spend(0, "video", -1), "expected none below 0"),
    ],
)
def test_record_that_changes_nothing_is_given_back_with_the_reason(
    record: Record, reason: str
) -> None:
    first = start()
    done = advance(first.state, [record], SETTINGS)
    assert done.state == first.state
    assert reason in done.rejected[0].reason


def test_duplicates_count_once_and_restated_reports_replace() -> None:
    first = start()
    records = [
        spend(0, "video", 100),
        spend(0, "video", 100),
        spend(0, "video", 50, id="r", restated=True),
    ]
    done = advance(first.state, records, SETTINGS)
    assert [each.reason for each in done.rejected] == ["duplicate: 's-0-video-100' came before"]
    assert decode(done.state).accounts[0]["video"].reported == 50


def test_infeasible_constraints_are_named() -> None:
    floors = [{"name": "a", "floor": 70}, {"name": "b", "fixed": 50}]
    values = {"currency": "EUR", "total": 100, "channels": floors, "periods_per_cycle": 1}
    with pytest.raises(InputError, match="floors add up to 120 micros a period, total is 100"):
        parse_constraints(values)
    channels = [{"name": "a", "floor": 9, "ceiling": 3}]
    with pytest.raises(InputError, match="'a': floor 9 is above ceiling 3"):
        parse_constraints({**values, "channels": channels})
    first = start()
    refused = advance(first.state, [Put(2, 0, constraints(100, Channel("a", floor=120)))], SETTINGS)
    assert "floors add up to 120" in refused.rejected[0].reason


def test_unconfirmed_budgets_count_until_channels_apply_others() -> None:
    asked = constraints(24_000, *(Channel(name) for name in NAMES), needs_applied=True)
    first = start(asked)
    old = amounts(first.decisions[0])
    second = advance(first.state, [Tick(1)], SETTINGS)
    new = amounts(second.decisions[0])
    # No channel said that it takes less, so none gets more.
    assert all(new[name] <= old[name] for name in NAMES)
    assert new != old
    applied: list[Record] = [Applied(f"a{name}", name, 1, new[name]) for name in NAMES]
    third = amounts(advance(second.state, [*applied, Tick(2)], SETTINGS).decisions[0])
    assert sum(third.values()) > sum(new.values())


def test_change_that_a_channel_refuses_raises_an_alarm() -> None:
    first = start()
    refused = Applied("a", "video", 0, 5_000)
    decision = advance(first.state, [refused, Tick(1)], SETTINGS).decisions[0]
    assert any("has 5000 micros in force" in alarm for alarm in decision.alarms)


def test_audit_log_verifies_and_every_change_is_found(tmp_path: Path) -> None:
    _, decisions = day(8)
    log = tmp_path / "audit.ndjson"
    lines = [msgspec.json.encode(decision) for decision in decisions]
    log.write_bytes(b"\n".join(lines))
    assert verify(read_log(log)) == 8
    changed = lines[3].replace(b'"cause":"tick"', b'"cause":"put"')
    log.write_bytes(b"\n".join([*lines[:3], changed, *lines[4:]]))
    with pytest.raises(DataError, match=r"line 4: decision 3 has hash .* it was changed"):
        verify(read_log(log))
    for left in (lines[:2] + lines[3:], [lines[0], lines[2], lines[1]], lines[1:]):
        log.write_bytes(b"\n".join(left))
        with pytest.raises(DataError, match="left out, put in or moved"):
            verify(read_log(log))
    log.write_bytes(b"no json")
    with pytest.raises(DataError, match="line 1: no decision"):
        verify(read_log(log))


def test_records_are_read_from_json() -> None:
    content = b'{"type":"tick","period":3}'
    assert record_of(content) == Tick(3)
    with pytest.raises(msgspec.ValidationError):
        record_of(b'{"type":"tick","period":"3"}')
