"""`python -m shared.course`: the author's commands (record, promote, exercises) and the learner's (progress)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.course import exercises, progress, promote
from shared.course.notebooks import ROOT, SOLUTIONS, chapters
from shared.errors import CourseError

EXAMPLES = """examples:
  python -m shared.course record ch03_attention          run and store all notebooks of a chapter
  python -m shared.course promote                        list where notebooks and modules disagree
  python -m shared.course promote --write                carry the notebooks' edits into the modules
  python -m shared.course exercises                      make every exercises.ipynb from its solutions.ipynb
  python -m shared.course progress --hours-per-week 5    how far the learner is"""


def record(options: argparse.Namespace) -> int:
    from shared.course.record import notebooks_of, record  # here, for the kernel's libraries take a while to load

    names = options.names or [chapter.name for chapter in chapters(options.root)]
    for path in notebooks_of(names, options.root):
        print(f"{path.parent.name}/{path.name} ...", end=" ", flush=True)
        print("recorded" if record(path) else "unchanged", flush=True)
    return 0


def promotion(options: argparse.Namespace) -> int:
    if options.write:
        for module in promote.write(options.root):
            print(f"wrote {module}")
    problems = promote.problems(options.root)
    print("\n".join(problems) if problems else "notebooks and modules agree")
    return 1 if problems else 0


def exercise_notebooks(options: argparse.Namespace) -> int:
    names = {Path(name).name for name in options.names}
    found = [chapter for chapter in chapters(options.root) if not names or chapter.name in names]
    unknown = names - {chapter.name for chapter in found}
    if unknown:
        raise CourseError(f"{', '.join(sorted(unknown))}: no such chapter; name a folder such as ch03_attention")
    problems = []
    for chapter in found:
        if not (chapter / SOLUTIONS).exists():
            continue
        if options.check:
            problems += [problem for problem in [exercises.stale(chapter)] if problem]
        else:
            changed = exercises.write_exercises(chapter)
            print(f"{chapter.name}/exercises.ipynb {'written' if changed else 'unchanged'}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m shared.course",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the course (default: this one)")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record", help="run notebooks and store their outputs")
    command.add_argument("names", nargs="*", help="chapter folders or notebooks (default: all chapters)")
    command.set_defaults(run=record)
    command = commands.add_parser("promote", help="compare notebooks with the modules that they build")
    command.add_argument("--write", action="store_true", help="carry the notebooks' text into the modules first")
    command.set_defaults(run=promotion)
    command = commands.add_parser("exercises", help="make exercises.ipynb from solutions.ipynb")
    command.add_argument("names", nargs="*", help="chapter folders (default: all)")
    command.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    command.set_defaults(run=exercise_notebooks)
    commands.add_parser("progress", help="how far the learner is; see progress --help", add_help=False)
    options, rest = parser.parse_known_args(argv)
    try:
        if options.command == "progress":
            return progress.main(rest, options.root)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return options.run(options)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
