"""Where text comes from. `load_corpus` takes the name of a corpus or a download, or the path of a file or folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shared.corpora.base import Conversation, Corpus, Turn, Watch, World, silent
from shared.corpora.downloads import DOWNLOADS, fetch, load_download
from shared.errors import CourseError

CORPORA = {
    "stories": "generated stories about a small world with known facts (the default; nothing to download)",
    "stories-small": "the same, by the name of their world",
    "stories-full": "stories about a larger world: 46 plots, paragraphs, two tenses, lessons",
    "python-docs": "the Python language reference that this Python carries: real prose",
    "python-code": "the sources of this Python's standard library: real code, about 10 MB",
}

STORY_WORLDS = {"stories": "small", "stories-small": "small", "stories-full": "full"}  # the base of each

__all__ = [
    "CORPORA", "DOWNLOADS", "STORY_WORLDS", "Conversation", "Corpus", "Turn", "Watch", "World", "load_corpus",
    "settle_name", "silent",
]  # fmt: skip


def load_corpus(
    name_or_path: str | Path,
    *,
    stories: int = 50_000,
    seed: int = 0,
    world: str | Path | None = None,
    watch: Watch = silent,
) -> Corpus:
    """Return a corpus by name (of CORPORA or DOWNLOADS) or from a UTF-8 file or a folder of them.

    `stories`, `seed` and `world` (a TOML file with names, things and plots of the learner's own) concern the story
    corpora alone; `watch` may show a progress bar. Raises CourseError when there is neither such a corpus nor such a
    file, and when a download is wanted that this machine neither has nor can fetch.
    """
    name = settle_name(str(name_or_path))
    if name in STORY_WORLDS:
        return _story_corpus(name, stories, seed, world, watch)
    if world is not None:
        raise CourseError(f"{world}: a world file changes the stories only; leave it out with the corpus {name}")
    if name == "python-docs":
        from shared.corpora.python_text import load_python_docs

        return load_python_docs()
    if name == "python-code":
        from shared.corpora.python_text import load_python_code

        return load_python_code()
    if name in DOWNLOADS:
        return load_download(name)
    if not Path(name).exists() and os.sep not in name and "." not in name:
        raise CourseError(f"{name}: no such corpus or file; the corpora are {', '.join([*CORPORA, *DOWNLOADS])}")
    from shared.corpora.files import load_file

    return load_file(name)


def settle_name(name: str, say: Callable[[str], object] = lambda line: None) -> str:
    """The corpus that `name` stands for: itself, but for "text" the best real text that can be had here and now.

    That is the first part of TinyStories where it lies in the cache or can be downloaded, else python-code.
    """
    if name != "text":
        return name
    try:
        for file in DOWNLOADS["tinystories-part"].files:
            fetch(file)
    except CourseError as error:
        say(f"text: python-code, because {error}")
        return "python-code"
    return "tinystories-part"


def _story_corpus(name: str, stories: int, seed: int, own_world: str | Path | None, watch: Watch) -> Corpus:
    """Draw all three splits; the validation sets are as large as a fiftieth of the training set, 1000 at most."""
    from shared.corpora.stories import World as StoryWorld

    if stories < 1:
        raise CourseError(f"{stories} stories: ask for at least 1")
    world = StoryWorld.load(own_world, base=STORY_WORLDS[name])
    few = max(1, min(1_000, stories // 50))
    return Corpus(
        name,
        f"{stories:,} stories of the world '{world.name}', seed {seed}",
        [story.text for story in watch(world.tell(stories, seed), "telling stories", stories)],
        world.stories(few, seed, "val"),
        world.stories(few, seed, "heldout"),
        world,
    )
