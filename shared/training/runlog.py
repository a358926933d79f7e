"""Sizes to train at, and the record of what was run: command, seed, versions, machine, every figure."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from shared.errors import CourseError
from shared.files import write_atomically
from shared.training.device import native_bf16

RECORDED_PACKAGES = ("torch", "numpy", "safetensors", "tiktoken")


@dataclass(frozen=True)
class Preset:
    """Everything the main job needs to know about size. model: keyword arguments of the model's config without the
    vocabulary; pretrain and finetune: of `TrainConfig`; every: steps between validations and checkpoints."""

    name: str
    stories: int
    vocab_size: int
    architecture: str
    model: dict = field(default_factory=dict)
    pretrain: dict = field(default_factory=dict)
    finetune: dict = field(default_factory=dict)
    every: int = 100


# Learning rates at which copying (of a name, a colour, a place) is learnt soonest on the stories. Muon's is low: at
# 0.02 the loss after 800 steps was 1.87 times the entropy floor, at 0.006 and with these 1.13 times.
RATES = {
    "matrix_learning_rate": 0.006,
    "learning_rate": 0.015,
    "embedding_learning_rate": 0.06,
    "betas": (0.8, 0.95),
}
GENTLE_RATES = {**RATES, "matrix_learning_rate": 0.003, "learning_rate": 0.007, "embedding_learning_rate": 0.03}

# "Language Models are Few-Shot Learners" (Brown et al., 2020), table 2.1 and appendix B: the smallest of them.
GPT3_SMALL = {
    "optimizer": "adamw",
    "learning_rate": 6e-4,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "schedule": "cosine",
    "warmup": 715,  # 375 million tokens
    "decay": 0,  # a cosine has no separate decay
    "floor": 0.1,
}

# laptop: two heads of 64 columns, where four of 32 would be usual at this width: with normalised queries and keys a
# narrow head cannot look at one token alone (notebook 4.7). After 1,300 steps the loss was 2.3 nats a story above the
# floor, with four of 32 it was 2.6; four of 64 reached 1.9, but made every step a quarter longer.
#
# wide: a shallow model learns to copy a name much sooner. On the stories of the full world, after 1,300 steps, four
# layers of two heads were 8.2 nats a story above the floor, two layers of four heads 4.9, and a step took them no
# longer. And a narrow model finds no room for all the words that must not come next: width 128 ended 6.1 nats above
# the floor, width 192 at 4.2 and width 256 at 3.3, with steps a fifth longer.
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",  # seconds: for tests
            stories=500,
            vocab_size=512,
            architecture="ModernGPT",
            model={"context": 64, "n_layers": 2, "n_heads": 2, "width": 32},
            pretrain={"steps": 20, "batch_size": 4, "warmup": 2, "decay": 10},
            finetune={"steps": 10, "batch_size": 4, "warmup": 2, "decay": 5},
            every=10,
        ),
        Preset(
            name="laptop",  # minutes on two cores: what `make run` trains
            stories=24_000,
            vocab_size=2048,
            architecture="ModernGPT",
            model={"context": 256, "n_layers": 4, "n_heads": 2, "width": 128},
            pretrain={**RATES, "steps": 2600, "batch_size": 10, "warmup": 20, "decay": 1700},
            finetune={**GENTLE_RATES, "steps": 350, "batch_size": 10, "warmup": 10, "decay": 300},
            every=100,
        ),
        Preset(
            name="wide",  # nine minutes: for the full world
            stories=24_000,
            vocab_size=2560,
            architecture="ModernGPT",
            model={"context": 256, "n_layers": 2, "n_heads": 4, "width": 256},
            pretrain={**RATES, "steps": 3000, "batch_size": 10, "warmup": 20, "decay": 2000},
            finetune={**GENTLE_RATES, "steps": 700, "batch_size": 10, "warmup": 10, "decay": 600},
            every=100,
        ),
        Preset(
            name="desktop",  # for a faster machine or more patience: the same recipe with 2.4 times the weights
            stories=80_000,
            vocab_size=2048,
            architecture="ModernGPT",
            model={"context": 256, "n_layers": 6, "n_heads": 4, "head_width": 64, "width": 192},
            pretrain={**RATES, "steps": 5000, "batch_size": 20, "warmup": 40, "decay": 3300},
            finetune={**GENTLE_RATES, "steps": 500, "batch_size": 20, "warmup": 10, "decay": 400},
            every=250,
        ),
        Preset(
            name="gpt2",  # GPT-2's smallest, on GPUs, from shards of 10 billion tokens (notebook 5.6)
            stories=80_000,
            vocab_size=50_257,
            architecture="GPT",
            model={"context": 1024, "n_layers": 12, "n_heads": 12, "width": 768},
            pretrain=GPT3_SMALL | {"steps": 19_073, "batch_size": 512},  # 2**19 tokens a step
            finetune=GPT3_SMALL | {"steps": 500, "batch_size": 32, "learning_rate": 6e-5, "warmup": 10},
            every=250,
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name, or a CourseError that lists them."""
    if name not in PRESETS:
        raise CourseError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that the numbers depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine_summary() -> dict:
    """What kind of machine this is: nothing that says whose, or where."""
    features = torch.cpu.get_capabilities()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": features.get("cpu_name") or platform.processor() or None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "native_bf16": native_bf16("cpu"),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command as one would type it, with the program's name but not where it is installed."""
    arguments = sys.argv if arguments is None else arguments
    program = Path(arguments[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *arguments[1:]])


class RunLog:
    """A file with one JSON object per line: first what was run, then figures as they come.

    A run that is resumed goes on in the same file: the lines of steps that will be done again are removed first.
    """

    def __init__(self, path: str | Path, seed: int, command: str | None = None, resume_step: int | None = None) -> None:
        self.path = Path(path)
        kept = [] if resume_step is None else [r for r in read_log(self.path) if r.get("step", 0) <= resume_step]
        header = {
            "command": command or command_line(),
            "seed": seed,
            "versions": versions(),
            "machine": machine_summary(),
        }
        if self.path.is_file() or not self.path.exists():
            lines = "".join(json.dumps(record) + "\n" for record in [*kept, header])
            write_atomically(self.path, lambda handle: handle.write(lines.encode("utf-8")))
        else:  # /dev/null or a pipe: it keeps nothing, and no file may be put in its place
            self.write(**header)

    def write(self, **figures: object) -> None:
        """Append one line; CourseError on a full disk, which may hold a part of it: `read_log` leaves that out."""
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(figures) + "\n")
        except OSError as error:
            reason = error.strerror or error
            raise CourseError(f"cannot write {self.path}: {reason}; free some space or choose another place") from error

    def __call__(self, run) -> None:  # a Run
        """As a call-back for `train`: append the record of the step."""
        self.write(**run.history[-1])


def read_log(path: str | Path) -> list[dict]:
    """The objects in a log; a last line that a crash cut short is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
