"""Promotion: what notebooks build is what modules hold; each way to part from that is named with its place."""

import pytest
from course_tree import change, code, save

from shared.course import promote
from shared.course.notebooks import ROOT, all_lessons
from shared.errors import CourseError

WORDS = "shared/text/words.py"
SPLIT = '''# Blanks part words.
def split(text: str) -> list[str]:
    """Cut at blanks."""
    return text.split()  # (T,)'''
JOIN = """@cache
def join(words: tuple[str, ...]) -> str:
    # One blank between two words.
    return BLANK.join(words)
    # (nothing is added at the ends)"""
MODULE = f'''"""Words."""

from functools import cache

BLANK = " "
TAB = "\\t"


{SPLIT}


{JOIN}
'''


@pytest.fixture
def root(tmp_path):
    """A course in which a built module comes from two lessons, word for word."""
    (tmp_path / "shared/text").mkdir(parents=True)
    (tmp_path / "shared/text/__init__.py").write_text("")
    (tmp_path / WORDS).write_text(MODULE)
    chapter = tmp_path / "ch02_text"
    constants = 'from functools import cache\n\nBLANK = " "\nTAB = "\\t"'
    save(chapter / "01_split.ipynb", code("%time 1 + 1"), code(constants, promote=WORDS), code(SPLIT, promote=WORDS))
    save(chapter / "02_join.ipynb", code("from shared.text.words import BLANK"), code(JOIN, promote=WORDS))
    return tmp_path


def only_problem(root) -> str:
    (problem,) = promote.problems(root)
    return problem


def test_equal_sides_have_no_problems(root):
    assert promote.problems(root) == []
    assert promote.write(root) == [] and (root / WORDS).read_text() == MODULE


@pytest.mark.parametrize(
    ("before", "after", "what", "line"),
    [
        ("# Blanks part words.", "# Blanks cut words.", "only comments", 9),
        ("# (T,)", "# (T)", "only comments", 12),
        ("# One blank", "# A blank", "only comments", 17),
        ("# (nothing", "# (Nothing", "only comments", 19),
        ('"""Cut at', '"""Part at', "the code differs", 11),
        ("text.split()", "text.split(None)", "the code differs", 12),
        ("@cache\n", "@cache  # kept\n", "only comments", 15),
        ('TAB = "\\t"', 'TAB = "\\v"', "the code differs", 6),
    ],
)
def test_a_changed_module_is_named_with_both_places(root, before, after, what, line):
    change(root / WORDS, before, after)
    problem = only_problem(root)
    assert what in problem and f"{WORDS} line {line}: " in problem
    assert "ch02_text/0" in problem and " In [" in problem


def test_a_changed_comment_in_the_notebook_is_named_too(root):
    change(root / "ch02_text/01_split.ipynb", "# Blanks part words.", "# Blanks cut words.")
    problem = only_problem(root)
    assert "ch02_text/01_split.ipynb In [3] line 1: # Blanks cut words." in problem
    assert f"{WORDS} line 9: # Blanks part words." in problem


def test_a_definition_that_no_notebook_builds(root):
    change(root / WORDS, "@cache", "def stray():\n    pass\n\n\n@cache")
    assert only_problem(root) == f"{WORDS} line 15: `stray` is built by no notebook"


def test_a_built_module_that_no_notebook_promotes_fails_as_a_whole(root):
    (root / "shared/model").mkdir()
    (root / "shared/model/gpt.py").write_text('"""A GPT."""\n\nWIDTH = 3\n')
    (root / "shared/training").mkdir()
    (root / "shared/training/runlog.py").write_text('"""Plain."""\n\nFILE = "log"\n')
    assert only_problem(root) == "shared/model/gpt.py line 3: `WIDTH` is built by no notebook"


def test_a_definition_that_the_module_lacks(root):
    change(root / WORDS, JOIN, "")
    assert only_problem(root) == f"ch02_text/02_join.ipynb In [2]: `join` is promoted, but not in {WORDS}"


def test_the_order_of_building_is_the_order_in_the_module(root):
    (root / WORDS).write_text(MODULE.replace(SPLIT, "").replace(JOIN, f"{JOIN}\n\n\n{SPLIT}"))
    assert "`join` stands where the notebooks build `split`" in only_problem(root)


def test_what_a_plain_module_holds_besides_is_its_own(root):
    (root / "shared/files.py").write_text('"""Plain."""\n\nOWN = 1\nTAKEN = 2\n')
    save(root / "ch02_text/03_more.ipynb", code("TAKEN = 2", promote="shared/files.py"))
    assert promote.problems(root) == []
    change(root / "ch02_text/03_more.ipynb", "TAKEN = 2", "TAKEN = 3")
    assert "`TAKEN`: the code differs" in only_problem(root)
    assert promote.write(root) == ["shared/files.py"]
    assert (root / "shared/files.py").read_text() == '"""Plain."""\n\nOWN = 1\nTAKEN = 3\n'


def test_a_later_notebook_imports_and_does_not_define_again(root):
    cell = code("def split(text):\n    return list(text)")
    save(root / "ch02_text/03_more.ipynb", cell)
    assert "ch02_text/03_more.ipynb In [1]: defines `split` again" in only_problem(root)
    cell.metadata["rebuilds"] = WORDS
    save(root / "ch02_text/03_more.ipynb", cell)
    assert promote.problems(root) == []


def test_a_definition_is_promoted_once(root):
    save(root / "ch02_text/03_more.ipynb", code(SPLIT, promote=WORDS))
    problems = promote.problems(root)
    assert any("In [1]: promotes `split`" in problem and "In [3] already does" in problem for problem in problems)


def test_no_promoted_cell_is_longer_than_a_page(root):
    longer = SPLIT + "\n    # more" * 57
    save(
        root / "ch02_text/01_split.ipynb", code('BLANK = " "\nTAB = "\\t"', promote=WORDS), code(longer, promote=WORDS)
    )
    promote.write(root)
    assert "a promoted cell of 61 lines" in only_problem(root)


def test_helpers_are_few(root):
    helper = "def _helper():\n    return 1"
    save(root / "ch02_text/03_more.ipynb", code(helper, promote=WORDS))
    promote.write(root)
    assert promote.problems(root) == []  # 2 of 23 lines
    change(root / "ch02_text/03_more.ipynb", "    return 1", "    one = 1\\n    # one\\n    return one")
    promote.write(root)
    assert f"{WORDS}: 4 of 25 lines are underscore helpers (_helper)" in only_problem(root)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f():\n    pass\n\nprint(f())", "line 4: `print(f())` defines nothing"),
        ("a = 1; b = 2", "two statements share a line"),
        ("a = 1\n# loose", "line 2: a comment after the last definition"),
        ("def f(:", "line 1: "),
    ],
)
def test_a_promoted_cell_holds_definitions_only(root, source, complaint):
    save(root / "ch02_text/03_more.ipynb", code(source, promote=WORDS))
    problem = only_problem(root)
    assert complaint in problem and "ch02_text/03_more.ipynb In [1]" in problem


def test_a_missing_module_is_named(root):
    save(root / "ch02_text/03_more.ipynb", code("a = 1", promote="shared/text/missing.py"))
    assert "shared/text/missing.py, which does not exist" in only_problem(root)
    with pytest.raises(CourseError, match=r"missing\.py: does not exist"):
        promote.write(root)


def test_write_carries_edits_additions_and_removals_into_the_module(root):
    change(root / "ch02_text/01_split.ipynb", "# Blanks part words.", "# Blanks cut words.")
    save(
        root / "ch02_text/02_join.ipynb",
        code("class Words:\n    pass", promote=WORDS),
        code('END = "."', promote=WORDS),
    )
    assert promote.write(root) == [WORDS]
    rest = SPLIT.replace("part words", "cut words") + '\n\n\nclass Words:\n    pass\n\n\nEND = "."\n'
    assert (root / WORDS).read_text() == MODULE[: MODULE.index(SPLIT)] + rest
    assert promote.problems(root) == []


def test_which_side_was_edited_since_the_last_commit(root, monkeypatch):
    monkeypatch.setattr(promote, "_changed_since_commit", lambda path, root: path == WORDS)
    change(root / WORDS, "# (T,)", "# (T)")
    assert f"({WORDS} was edited since the last commit)" in only_problem(root)


def test_the_built_modules_are_those_of_the_stack():
    built = promote.built_modules(ROOT)
    assert {"shared/text/bpe.py", "shared/model/gpt.py", "shared/app/chat.py"} <= set(built)
    plain = ("shared/corpora", "shared/course", "shared/plots.py", "shared/training/checkpoint.py", "shared/app/cli.py")
    assert not [module for module in built if module.startswith(plain)]


@pytest.mark.skipif(not all_lessons(), reason="there are no notebooks yet")
def test_the_course_itself():
    assert not promote.problems(), "\n".join(promote.problems())
