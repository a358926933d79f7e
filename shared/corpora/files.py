"""A learner's own text file as a corpus: checked before anything is built from it."""

from __future__ import annotations

from pathlib import Path

from shared.corpora.base import Corpus
from shared.errors import CourseError

SMALLEST = 2_000  # bytes: with less, the validation tenth would not fill one window


def load_file(path: str | Path) -> Corpus:
    """Read a UTF-8 text file; its first nine tenths are for training, the rest is for validation.

    Windows line ends become "\\n" and a byte order mark is dropped. Raises CourseError for a file that is missing,
    a folder, empty, too small or not UTF-8 text.
    """
    path = Path(path)
    text = _read_text(path)
    border = _line_border(text, len(text) * 9 // 10)
    return Corpus(path.name, f"the file {path}", [text[:border]], [text[border:]])


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise CourseError(f"{path}: this is a folder; name one UTF-8 text file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CourseError(f"{path}: no such file; check the path, or name a corpus") from None
    except OSError as error:
        raise CourseError(f"{path}: the file can't be read ({error.strerror}); check its permissions") from None
    if not raw.strip():
        raise CourseError(f"{path}: the file is empty; a corpus needs at least {SMALLEST:,} bytes of text")
    if b"\0" in raw:
        raise CourseError(f"{path}: this is a binary file, or text in UTF-16; save it as UTF-8 text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CourseError(
            f"{path}: not UTF-8 text (byte 0x{raw[error.start]:02x} at offset {error.start:,}); save it as UTF-8"
        ) from None
    if len(raw) < SMALLEST:
        raise CourseError(f"{path}: only {len(raw):,} bytes; a corpus needs at least {SMALLEST:,} bytes of text")
    return text.replace("\r\n", "\n")


def _line_border(text: str, near: int) -> int:
    """Return where to cut: after the last line end before `near`, or at `near` itself in a text of one long line."""
    border = text.rfind("\n", len(text) // 2, near) + 1
    return border or near
