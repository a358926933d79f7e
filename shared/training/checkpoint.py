"""Model directories and resume files: whole or not there, however the process ends.

A model directory holds config.json, model.safetensors, tokenizer.json and training.json. Four files cannot be
replaced at one moment, so saving is in two parts. First every new file is written beside its target, with the
suffix .new; until then nothing that counts has changed. Then pending.json appears, with the names and sha256 of the
new files: from this moment the new state is the valid one. What is left, moving each file over its target and
removing pending.json, can be done by anyone at any time, and whoever opens the directory next does it.
"""

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from shared.errors import CourseError
from shared.files import write_atomically
from shared.model.gpt import GPT, GPTConfig
from shared.model.modern import ModernConfig, ModernGPT
from shared.text.bpe import BPETokenizer
from shared.training.distributed import rank

CONFIG, WEIGHTS, TOKENIZER, TRAINING = "config.json", "model.safetensors", "tokenizer.json", "training.json"
PENDING = "pending.json"
RESUME = "resume.pt"
NEW = ".new"
FORMAT = 1  # of the files; to be raised when a change makes older ones unreadable
RESUME_PARTS = {"format", "config", "config_sha256", "state"}
START_AGAIN = "start again without --resume (the main job: with --fresh, or make run FRESH=1)"

ARCHITECTURES: dict[str, tuple[type, type]] = {"GPT": (GPT, GPTConfig), "ModernGPT": (ModernGPT, ModernConfig)}


def sha256(data: bytes) -> str:
    """The fingerprint of some bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> bytes:
    """Readable, strict JSON: a number that is not finite is written as null."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return (json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_json(path: Path, data: bytes) -> dict:
    """The object in a JSON file, or a CourseError that names the file."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CourseError(f"{path} is damaged (not JSON): restore the model directory or train again") from error
    if not isinstance(value, dict):
        raise CourseError(f"{path} is damaged (not a JSON object): restore the model directory or train again")
    return value


def flush(path: Path) -> None:
    """Wait until the file's bytes, or the folder's list of names, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows does not open folders, and journals their names itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def roll_forward(directory: Path) -> None:
    """Finish an interrupted save: move the files that pending.json lists over their targets.

    Does nothing without a pending.json; any .new files are then leftovers of a save that never counted.
    """
    pending = directory / PENDING
    if not pending.exists():
        return
    for name, digest in parse_json(pending, pending.read_bytes()).items():
        new, target = directory / (name + NEW), directory / name
        if new.exists() and sha256(new.read_bytes()) == digest:
            os.replace(new, target)
        elif not (target.exists() and sha256(target.read_bytes()) == digest):
            raise CourseError(f"{new} is missing or damaged: restore the model directory or train again")
    flush(directory)
    pending.unlink()


def replace_together(directory: Path, writers: dict[str, Callable[[Path], object]]) -> None:
    """Replace several files of a directory as one: after a crash at any moment, all are old or all are new.

    writers: for each name a function that writes that file at the path it is given. An OSError, such as a full disk,
    becomes a CourseError; if it happens before pending.json is in place, the new files are removed again.
    """
    new_files = {name: directory / (name + NEW) for name in writers}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with suppress(CourseError):  # a directory that is beyond repair may be saved over
            roll_forward(directory)
        digests = {}
        for name, path in new_files.items():
            writers[name](path)
            flush(path)
            digests[name] = sha256(path.read_bytes())
        flush(directory)
        write_atomically(directory / PENDING, lambda handle: handle.write(to_json(digests)))
        flush(directory)
        roll_forward(directory)
    except OSError as error:
        reason = error.strerror or error
        raise CourseError(f"cannot save in {directory}: {reason}; free some space or choose another place") from error
    finally:
        with suppress(OSError):
            if not (directory / PENDING).exists():  # once it exists, the new files are the valid ones
                for path in new_files.values():
                    path.unlink(missing_ok=True)


def unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors by name, on the CPU; of tied ones, which are one tensor under two names, the first name."""
    names: dict[int, str] = {}
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in names:
            names[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def save_model(directory: str | Path, model: nn.Module, tokenizer: BPETokenizer, info: dict) -> None:
    """Write a model directory, replacing the one that may be there as a whole.

    info: what is worth knowing about the training (corpus, seed, versions, losses); goes into training.json, with the
    sha256 of every file. CourseError on a full disk or a forbidden folder; the old files are then still valid.
    """
    directory = Path(directory)
    architecture = type(model).__name__
    if architecture not in ARCHITECTURES:
        raise CourseError(f"{architecture} is not a known architecture: choose one of {', '.join(ARCHITECTURES)}")
    digests: dict[str, str] = {}

    def put(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        digests[path.name.removesuffix(NEW)] = sha256(data)

    def put_tokenizer(path: Path) -> None:
        tokenizer.save(path)
        digests[TOKENIZER] = sha256(path.read_bytes())

    def put_training(path: Path) -> None:
        content = {"format": FORMAT, **info, "sha256": digests}
        digests[TRAINING] = sha256(to_json(content))  # of the file as it is without this entry
        path.write_bytes(to_json(content))

    sizes: Any = model.config
    config = {"architecture": architecture, **asdict(sizes)}
    writers: dict[str, Callable[[Path], object]] = {
        CONFIG: lambda path: put(path, to_json(config)),
        WEIGHTS: lambda path: put(path, safetensors.torch.save(unique_tensors(model))),
        TOKENIZER: put_tokenizer,
        TRAINING: put_training,  # the last, because it holds the others' sha256
    }
    replace_together(directory, writers)


def read_model_files(directory: Path) -> dict[str, bytes]:
    """The bytes of the four files, after each was compared with the sha256 in training.json."""
    try:
        roll_forward(directory)
        files = {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS, TOKENIZER, TRAINING)}
    except FileNotFoundError as error:
        message = f"{directory} is not a model directory ({Path(error.filename).name} is missing)"
        raise CourseError(f"{message}: give the --out folder of a training run") from error
    except OSError as error:
        raise CourseError(f"cannot read {directory}: {error.strerror}; check the path") from error
    training = parse_json(directory / TRAINING, files[TRAINING])
    digests = training.get("sha256")
    if training.get("format") != FORMAT or not isinstance(digests, dict):
        raise CourseError(f"{directory / TRAINING} is not of format {FORMAT}: train again with this version")
    expected = {TRAINING: digests.pop(TRAINING, None), **digests}  # first the file that vouches for the others
    found = {**{name: sha256(data) for name, data in files.items()}, TRAINING: sha256(to_json(training))}
    for name, digest in expected.items():
        if digest != found.get(name):
            raise CourseError(f"{directory / name} was changed or truncated after saving: restore it or train again")
    return files


def build_model(path: Path, config: dict) -> nn.Module:
    """The untrained model that a config.json describes; path is only named in errors."""
    fields = dict(config)
    architecture = fields.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CourseError(f"{path} names the architecture {architecture!r}: this version knows {known}")
    model_class, config_class = ARCHITECTURES[architecture]
    try:
        return model_class(config_class(**fields))
    except TypeError as error:
        raise CourseError(f"{path} does not describe a {architecture}: {error}; train again") from error


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors into the model; a name may only be absent where the model ties it to one that is there."""
    own = model.state_dict(keep_vars=True)
    given = {id(own[name]) for name in tensors if name in own}
    strangers = [name for name in tensors if name not in own]
    missing = [name for name, tensor in own.items() if id(tensor) not in given]
    shapes = [name for name, tensor in tensors.items() if name in own and tensor.shape != own[name].shape]
    for names, problem in ((strangers, "not part of the model"), (missing, "missing"), (shapes, "of another shape")):
        if names:
            raise CourseError(f"{path} does not fit config.json: {names[0]} is {problem}; train again")
    model.load_state_dict(tensors, strict=False)


def load_model(directory: str | Path) -> tuple[nn.Module, BPETokenizer, dict]:
    """Read a model directory: (model in eval mode on the CPU, tokenizer, info).

    CourseError, naming the file, when one is missing, truncated or changed.
    """
    directory = Path(directory)
    files = read_model_files(directory)
    model = build_model(directory / CONFIG, parse_json(directory / CONFIG, files[CONFIG]))
    try:
        tensors = safetensors.torch.load(files[WEIGHTS])
    except safetensors.SafetensorError as error:
        raise CourseError(f"{directory / WEIGHTS} is damaged: restore it or train again") from error
    load_weights(model, tensors, directory / WEIGHTS)
    info = parse_json(directory / TRAINING, files[TRAINING])
    info = {key: value for key, value in info.items() if key not in ("sha256", "format")}
    return model.eval(), BPETokenizer.load(directory / TOKENIZER), info


def differences(saved: dict, wanted: dict, prefix: str = "") -> list[str]:
    """What differs between two nested dicts, one short text each."""
    found = []
    for key in sorted(saved.keys() | wanted.keys()):
        old, new = saved.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r} and is now {new!r}")
    return found


def save_resume(directory: str | Path, state: dict, config: dict) -> None:
    """Write resume.pt, whole or not at all.

    state: `Run.state()`. config: everything that must be the same for the run to go on as it was (sizes, training
    options, corpus, seed), as JSON values. CourseError on a full disk; an older resume.pt then stays as it was.
    """
    config = json.loads(to_json(config))  # as it will compare: tuples become lists
    content = {"format": FORMAT, "config": config, "config_sha256": sha256(to_json(config)), "state": state}
    buffer = io.BytesIO()  # in memory first, so that any error of the disk is Python's own OSError
    torch.save(content, buffer)
    write_atomically(Path(directory) / RESUME, lambda handle: handle.write(buffer.getbuffer()))


def load_resume(directory: str | Path, config: dict) -> dict:
    """Read the state in resume.pt back. CourseError when there is none, when it is damaged, and when it belongs to a
    run with another config (the message says what differs)."""
    path = Path(directory) / RESUME
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # the checksum of every part
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CourseError(f"{path} does not exist: there is nothing to resume, start without --resume") from error
    except Exception as error:  # zipfile, torch and pickle each have their own words for a damaged file
        raise CourseError(f"{path} is damaged: {START_AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= RESUME_PARTS:
        raise CourseError(f"{path} is damaged or not of format {FORMAT}: {START_AGAIN}")
    different = differences(content["config"], json.loads(to_json(config)))
    if different:
        what = "; ".join(different)
        raise CourseError(f"{path} belongs to another run ({what}): use the same options, or start without --resume")
    return content["state"]


def checkpoint_every(every: int, directory: str | Path, config: dict) -> Callable[[Any], None]:
    """A call-back for `train` that writes resume.pt every so many steps, at the end, and after Ctrl-C.

    It must be the last of the call-backs that add to the history.
    """

    def callback(run: Any) -> None:
        if rank() == 0 and (run.due(every) or run.interrupted):
            save_resume(directory, run.state(), config)

    return callback
