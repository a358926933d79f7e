"""`check`: one line whatever the learner's function does, hints when asked, and no trace left behind."""

import random

import numpy as np
import pytest
import torch
from course_tree import CHECKS, use_paper

from shared.course import checks
from shared.course.checks import NOT_DONE, PASSED, WRONG, Check, distinct_sizes, exercise, judge
from shared.errors import CourseError


@exercise("98.1", hints=("a", "b", "c"))
def transposed(function):
    x = torch.randn(distinct_sizes(2))
    checks.require_shape(function(x), x.T.shape)
    checks.require_close(function(x), x.T, "row 0 is not column 0")


def returns_nothing(x):
    x.T.contiguous()


def wrong_shape(x):
    return x


def raises(x):
    return x @ x


def loose_end(x):
    raise NotImplementedError("one day")


def needs_another(x):
    raise NotImplementedError("exercise 98.7")


def untouched(x):
    raise NotImplementedError("exercise 98.1")


def endless(x):
    return endless(x)


def leaves(x):
    raise SystemExit


@pytest.mark.parametrize(
    ("function", "status", "words"),
    [
        (lambda x: x.T, PASSED, [PASSED]),
        (untouched, NOT_DONE, [NOT_DONE]),
        (needs_another, NOT_DONE, ["it needs exercise 98.7 first"]),
        (loose_end, WRONG, ["loose_end(<(", "NotImplementedError: one day"]),
        (returns_nothing, WRONG, ["the result is None: is a `return` missing?"]),
        (wrong_shape, WRONG, ["the result has shape (", "not ("]),
        (lambda x: x.tolist(), WRONG, ["is a list, not a tensor of shape"]),
        (lambda x: x.T / 0 * 0, WRONG, ["NaN"]),
        (lambda x: x.T + 1, WRONG, ["row 0 is not column 0"]),
        (raises, WRONG, ["raises(<(", "the shapes do not fit at `return x @ x`", "mat1 and mat2"]),
        (endless, WRONG, ["RecursionError"]),
        (leaves, WRONG, ["SystemExit"]),
        (lambda: None, WRONG, ["TypeError"]),
        (3, WRONG, ["this is no function but of type int"]),
    ],
)
def test_every_outcome_is_one_line(function, status, words):
    verdict = judge(transposed, function)
    assert verdict.status == status and verdict.passed == (status == PASSED)
    assert all(word in verdict.message for word in words), verdict.message
    assert "\n" not in verdict.message and len(verdict.message) <= checks.LONGEST_MESSAGE


def test_a_result_that_the_check_cannot_use_is_the_functions_fault():
    namespace: dict = {}
    exec(compile("def same(x):\n    return x\n\n\ndef nothing(x):\n    pass", "a cell", "exec"), namespace)
    check = Check("98.1", lambda function: function(2).mean(), ())
    assert judge(check, namespace["same"]).message.startswith(
        "same(2): what it returned cannot be used: AttributeError"
    )
    assert judge(check, namespace["nothing"]).message == "nothing(2): it returned None: is a `return` missing?"


def test_a_class_is_judged_as_it_is():
    class Doubler(torch.nn.Module):
        def forward(self, x):
            return x @ x

    check = Check("98.1", lambda kind: kind()(torch.ones(2, 3)), ())
    assert "Doubler: the shapes do not fit at `return x @ x`" in judge(check, Doubler).message


def test_judging_is_repeatable_and_leaves_the_generators_alone():
    seen = []

    def draw(function):
        seen.append((torch.rand(1).item(), np.random.rand(), distinct_sizes(3)))

    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    for _ in range(2):
        judge(Check("98.1", draw, ()), len)
    assert seen[0] == seen[1] and len(set(seen[0][2])) == 3
    assert states == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_check_prints_one_line_and_the_hint_that_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(checks, "find_check", lambda id: transposed)
    assert checks.check("98.1", untouched) is None
    assert capsys.readouterr().out == "exercise 98.1: not done yet\n"
    checks.check("98.1", lambda x: x.T, hint=2)
    assert capsys.readouterr().out == "exercise 98.1: passed\nhint 2 of 3: b\n"
    with pytest.raises(CourseError, match="hints go from 1 to 3"):
        checks.check("98.1", untouched, hint=4)


def test_three_hints_or_none():
    with pytest.raises(CourseError, match="2 hints; give three"):
        exercise("98.1", hints=("a", "b"))
    with pytest.raises(CourseError, match="give three"):
        exercise("98.1", hints=("a", "b", " "))


def test_checks_are_found_by_their_number(tmp_path, monkeypatch):
    use_paper(monkeypatch, tmp_path)
    path = tmp_path / "shared/course/checks/ch98.py"
    path.parent.mkdir(parents=True)
    path.write_text(CHECKS)
    assert checks.find_check("98.2", tmp_path).hints[0] == "look at OFFSET"
    for id, words in [("98.9", "chapter 98 has 98.1, 98.2"), ("97.1", "no chapter has"), ("x", "no chapter has")]:
        with pytest.raises(CourseError, match=words):
            checks.find_check(id, tmp_path)
    path.write_text(CHECKS.replace('"98.2"', '"97.2"'))
    checks.load_checks.cache_clear()
    with pytest.raises(CourseError, match=r"number them 98\.1"):
        checks.find_check("98.1", tmp_path)
