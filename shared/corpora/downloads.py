"""Corpora that are fetched once, checked by their sha256, and kept in the cache folder of this user.

    load_download("tinyshakespeare")    a Corpus, as `load_corpus` returns it
    fetch(DOWNLOADS["sms-spam"].train)  the path of one file, fetched unless it is there

Where a file is looked for: in the folder that the environment variable COURSE_DATA names (no network is used then),
in the cache, and at each mirror in turn. A file whose sha256 is not the one below is refused, and never left behind.
For a file that we could not check ourselves, `sha256` is None: its sum is written beside it when it is first fetched
(`FILE.sha256`, as the program sha256sum prints it), and from then on it has to stay the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shared.corpora.base import Corpus, every_nth
from shared.errors import CourseError
from shared.files import write_atomically

CACHE_NAME = "llm-by-hand"  # pooch.os_cache puts it where the system wants caches
SIZE_TOLERANCE = 0.1  # of a file without a known sha256: a hotel's log-in page in its place is much shorter
TIMEOUT = (10, 60)  # seconds until a mirror answers, and between two pieces of the file


@dataclass(frozen=True)
class RemoteFile:
    """One file: its name here, the same bytes at several addresses, its size in bytes, its sha256 if known."""

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Download:
    """A corpus made of one or two files. `cut` makes documents of a file; without `val`, `divide` splits them.

    `most`: so many bytes of the training file are read, up to the last whole document in them; None for all.
    """

    about: str
    licence: str
    train: RemoteFile
    val: RemoteFile | None = None
    cut: Callable[[str], list[str]] = lambda text: [text]
    divide: Callable[[list[str]], tuple[list[str], list[str]]] = lambda documents: every_nth(documents, 10)
    most: int | None = None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (self.train,) if self.val is None else (self.train, self.val)


def _github(repository: str, commit: str, path: str) -> tuple[str, ...]:
    """A file of one commit, which nobody can change any more: at GitHub itself and at a public mirror of it."""
    return (
        f"https://raw.githubusercontent.com/{repository}/{commit}/{path}",
        f"https://cdn.jsdelivr.net/gh/{repository}@{commit}/{path}",
    )


def _hugging_face(dataset: str, revision: str, path: str) -> tuple[str, ...]:
    return tuple(
        f"https://{host}/datasets/{dataset}/resolve/{revision}/{path}" for host in ("huggingface.co", "hf-mirror.com")
    )


def _first_nine_tenths(documents: list[str]) -> tuple[list[str], list[str]]:
    """The split with which results on Tiny Shakespeare are published: the last tenth of the characters judges."""
    (text,) = documents
    border = len(text) * 9 // 10
    return [text[:border]], [text[border:]]


def _articles(text: str) -> list[str]:
    """WikiText has a line ` = Title = ` before each article; sections have two or more signs on each side."""
    return [part for part in re.split(r"(?m)^(?= = [^=].*[^=] = ?$)", text) if part.strip()]


def _stories(text: str) -> list[str]:
    return [story.strip() + "\n" for story in text.split("<|endoftext|>") if story.strip()]


def labelled_messages(text: str) -> list[tuple[str, str]]:
    """(label, message) of each line of the SMS collection, `label<TAB>message`; a message that comes twice is kept
    once, or some of the messages to be judged would have been read in training."""
    lines = dict.fromkeys(line for line in text.splitlines() if "\t" in line)
    return [(label, message) for label, _, message in (line.partition("\t") for line in lines)]


def _messages(text: str) -> list[str]:
    return list(dict.fromkeys(message + "\n" for _, message in labelled_messages(text)))


_WIKITEXT = ("pytorch/examples", "77f55b912142e11fcfdf5b530231fb9c52f181e8")
_WIKITEXT_VALID = RemoteFile(
    "wikitext2-valid.txt",
    _github(*_WIKITEXT, "word_language_model/data/wikitext-2/valid.txt"),
    1_121_681,
    "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
)
_TINYSTORIES = ("roneneldan/TinyStories", "6d02f92396f7e3e60c2251070b6e0b168568074b")
_TINYSTORIES_TRAIN = RemoteFile(
    "tinystories-train.txt", _hugging_face(*_TINYSTORIES, "TinyStoriesV2-GPT4-train.txt"), 2_230_000_000
)
_TINYSTORIES_VALID = RemoteFile(
    "tinystories-valid.txt", _hugging_face(*_TINYSTORIES, "TinyStoriesV2-GPT4-valid.txt"), 22_502_601
)

DOWNLOADS = {
    "tinyshakespeare": Download(
        "40,000 lines from Shakespeare's plays (Karpathy, 2015)",
        "public domain",
        RemoteFile(
            "tinyshakespeare.txt",
            _github("karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e", "data/tinyshakespeare/input.txt"),
            1_115_394,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        divide=_first_nine_tenths,
    ),
    "wikitext2": Download(
        "articles of Wikipedia, words set apart by blanks (Merity and others, 2016)",
        "CC BY-SA 3.0",
        RemoteFile(
            "wikitext2-train.txt", _github(*_WIKITEXT, "word_language_model/data/wikitext-2/train.txt"), 10_800_000
        ),
        _WIKITEXT_VALID,
        cut=_articles,
    ),
    "wikitext2-valid": Download(
        "the 60 articles of its validation part alone", "CC BY-SA 3.0", _WIKITEXT_VALID, cut=_articles
    ),
    "sms-spam": Download(
        "text messages, some of them spam (Almeida and Hidalgo, 2011)",
        "CC BY 4.0",
        RemoteFile(
            "sms-spam.tsv",
            _github("justmarkham/pycon-2016-tutorial", "5339710562cc46c4a32a369d63f1e8751a18a54e", "data/sms.tsv"),
            477_907,
            "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
        ),
        cut=_messages,
    ),
    "tinystories": Download(
        "2.7 million stories for small children, written by GPT-4 (Eldan and Li, 2023); wants 12 GB of memory",
        "CDLA-Sharing-1.0",
        _TINYSTORIES_TRAIN,
        _TINYSTORIES_VALID,
        cut=_stories,
    ),
    "tinystories-part": Download(
        "the first 120 MB of it: as much as a desktop computer reads in some hours",
        "CDLA-Sharing-1.0",
        _TINYSTORIES_TRAIN,
        _TINYSTORIES_VALID,
        cut=_stories,
        most=120_000_000,
    ),
    "tinystories-valid": Download(
        "the stories of its validation part alone", "CDLA-Sharing-1.0", _TINYSTORIES_VALID, cut=_stories
    ),
}


def load_download(name: str, cache: Path | None = None) -> Corpus:
    """The corpus of that name in DOWNLOADS, fetched when this machine does not have it.

    Raises CourseError when no mirror can be reached, and when a file is not the one that was published.
    """
    download = DOWNLOADS[name]
    paths = [fetch(file, cache) for file in download.files]
    texts = [download.cut(_read(path)) for path in paths[1:]]
    texts.insert(0, _documents(download, paths[0]))
    train, val = texts if len(texts) == 2 else download.divide(texts[0])
    unknown = [f"{file.name} as it was when first fetched" for file in download.files if file.sha256 is None]
    source = f"{name}: {download.about}; {download.licence}" + (f" ({', '.join(unknown)})" if unknown else "")
    return Corpus(name, source, train, val)


def _documents(download: Download, path: Path) -> list[str]:
    """The documents of the training file, or of its beginning: then without the last, which may not be whole."""
    documents = download.cut(_read(path, download.most))
    cut_short = download.most is not None and path.stat().st_size > download.most
    return documents[:-1] if cut_short else documents


def _read(path: Path, most: int | None = None) -> str:
    """The text of a file, or its lines within the first `most` bytes."""
    with path.open("rb") as handle:
        raw = handle.read(-1 if most is None else most)
    if most is not None and len(raw) == most:
        raw = raw[: raw.rfind(b"\n") + 1]  # a character may have been cut in two
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CourseError(f"{path}: not UTF-8 text (offset {error.start:,}); remove it and fetch it again") from None


# ------------------------------------------------------------------------------------------------------ one file


def fetch(file: RemoteFile, cache: Path | None = None) -> Path:
    """The path of a checked copy of the file: in COURSE_DATA, in the cache, or fetched into the cache now.

    cache: a folder; None for the user's own cache folder. Raises CourseError, one line, when a copy in COURSE_DATA or
    in the cache is not the published file, and when no mirror hands it out. No part of a file is ever left behind.
    """
    given = os.environ.get("COURSE_DATA")
    if given and (Path(given) / file.name).is_file():
        path = Path(given) / file.name
        known = file.sha256 or _locked(path)
        if known is not None and sha256_of(path) != known:
            raise CourseError(
                f"{path}: not the published file (its sha256 is another one); remove it, or unset COURSE_DATA"
            )
        return path
    path = (cache or default_cache()) / file.name
    if path.is_file():
        known = file.sha256 or _locked(path)
        if known is None or sha256_of(path) == known:
            return path
        if file.sha256 is None:
            raise CourseError(f"{path}: changed since it was fetched; remove it and {_lock(path).name} to begin anew")
        path.unlink()  # damaged, and the right one is known
    _download(file, path)
    return path


def default_cache() -> Path:
    """The folder in which this user's system keeps caches."""
    import pooch

    return Path(pooch.os_cache(CACHE_NAME))


def sha256_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _locked(path: Path) -> str | None:
    """The sum that was recorded when the file was first fetched."""
    try:
        return _lock(path).read_text(encoding="ascii").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return None


def _write_lock(path: Path) -> None:
    line = f"{sha256_of(path)}  {path.name}\n".encode("ascii")
    write_atomically(_lock(path), lambda handle: handle.write(line))


def _download(file: RemoteFile, path: Path) -> None:
    """Fetch the file from the first mirror that hands out the right one."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # it would announce every address; a bar says enough
    expected = file.sha256 or _locked(path)  # a file that was removed has to come back as it was
    bar = sys.stderr.isatty()
    reasons: dict[str, str] = {}
    for url in file.urls:
        downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT)
        try:
            pooch.retrieve(url, expected and f"sha256:{expected}", path.name, path.parent, downloader=downloader)
        except (requests.RequestException, ValueError) as error:
            reasons.setdefault(urlsplit(url).netloc, _reason(error))
        except OSError as error:
            raise CourseError(
                f"cannot write {path}: {error.strerror or error}; free some space, or set COURSE_DATA to a folder "
                f"that holds {file.name}"
            ) from error
        else:
            if file.sha256 is not None:
                return
            if abs(path.stat().st_size / file.size - 1) <= SIZE_TOLERANCE:
                _write_lock(path)
                return
            path.unlink()
            reasons.setdefault(urlsplit(url).netloc, "another file")
    raise CourseError(_offline(file, reasons.items()))


def _reason(error: Exception) -> str:
    """Why a mirror did not help, in words that are the same on every system."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "it broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return "another sha256" if "does not match the known hash" in str(error) else f"{type(error).__name__}"


def _offline(file: RemoteFile, reasons: Iterable[tuple[str, str]]) -> str:
    tried = ", ".join(f"{host} ({reason})" for host, reason in reasons)
    return (
        f"{file.name} ({file.size / 1e6:,.1f} MB) is not on this machine and could not be fetched from {tried}; "
        "connect to the network and try again, or set COURSE_DATA to a folder that holds the file"
    )
