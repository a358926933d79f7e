"""Writing files so that a crash, Ctrl-C or a full disk leaves the old file or the new one, never a part of one."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shared.errors import CourseError


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file through `write(handle)` beside its target, flush it to the disk, then put it in place at once.

    The folder is made when it does not exist. Whatever fails, the target keeps what it held and the temporary file is
    removed; a full disk or a forbidden folder is a CourseError that names the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise CourseError(f"cannot write {path}: {reason}; free some space or choose another place") from error
    finally:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)
