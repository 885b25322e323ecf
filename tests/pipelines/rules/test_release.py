"""Rules of `[export]`."""

from __future__ import annotations

from headwater.feature_store import schema as fs
from headwater.pipelines.rules.release import context_problems, opset_problems, table_problems


def test_context_that_no_feature_reads_is_told_with_what_is_near() -> None:
    read = ["user", "item"]
    assert context_problems(["user"], read) == []
    assert context_problems(["usr", "xyzzy"], read) == [
        "export.context: 'usr' is no raw column of a feature. Did you mean 'user'?",
        "export.context: 'xyzzy' is no raw column of a feature. Known: user, item.",
    ]


def test_operator_set_is_refused_for_each_feature_that_reads_text() -> None:
    steps = {
        "tags": (fs.Split(separator="|"),),
        "user": (fs.Lookup(keys=(1,)),),
        "at": (fs.Time(),),
    }
    assert opset_problems(None, steps) == []
    assert opset_problems(20, steps) == []
    problems = opset_problems(18, steps)
    assert [problem.split("feature ")[1].split()[0] for problem in problems] == ["'tags'", "'at'"]
    assert "export.opset: 18 is below 20" in problems[0]


def test_types_of_tables_that_save_nothing_are_refused() -> None:
    assert table_problems("float32", []) == []
    assert table_problems("float16", [1]) == []
    assert table_problems("int8", [1, 3]) == []
    (problem,) = table_problems("int8", [1, 2])
    assert problem.startswith(
        "export.tables: 'int8' saves nothing: no table has more than 2 dimensions"
    )
    assert problem.endswith("Set export.tables = 'float16'.")
    for stored in ("float16", "int8"):
        (problem,) = table_problems(stored, [])
        assert problem.startswith(
            f"export.tables: {stored!r} saves nothing: every feature is a number"
        )
        assert problem.endswith("Leave `tables` out.")
