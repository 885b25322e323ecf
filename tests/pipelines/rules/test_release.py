"""Rules of `[export]`."""

from __future__ import annotations

from headwater.feature_store import schema as fs
from headwater.pipelines.rules.release import context_problems, opset_problems


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
