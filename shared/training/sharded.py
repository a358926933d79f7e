"""Checkpoints of a model that no rank holds whole: all ranks write at once, each its own part.

    models/gpt2/resume/step-00000200/   what torch.distributed.checkpoint writes, a file for each rank
    models/gpt2/resume/latest.json      which of them counts, with step, history and config of the run

latest.json is replaced only when every part of the new checkpoint is on the disk, and older folders are removed after
that: whenever the job ends, a whole checkpoint is there. It can be read by any number of ranks.
"""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from shared.errors import CourseError
from shared.files import write_atomically
from shared.training.checkpoint import FORMAT, differences, parse_json, to_json
from shared.training.distributed import rank, wait_for_all, whole
from shared.training.train import Run, TrainConfig, build_optimizers

FOLDER, LATEST = "resume", "latest.json"


def save_sharded(directory: str | Path, run: Run, config: dict) -> None:
    """Write `directory/resume`; every rank has to call it. config: as for `checkpoint.save_resume`."""
    folder = Path(directory) / FOLDER
    name = f"step-{run.step:08}"
    weights, averages = get_state_dict(run.model, run.optimizers)
    try:
        dcp.save({"model": weights, "optimizers": averages}, checkpoint_id=folder / name)
    except (OSError, CheckpointException) as error:  # on all ranks, whichever could not write
        raise CourseError(f"cannot save in {folder}: if the disk is full, free some space and --resume") from error
    wait_for_all()
    if rank() == 0:
        latest = {"format": FORMAT, "folder": name, "step": run.step, "config": config, "history": run.history}
        write_atomically(folder / LATEST, lambda handle: handle.write(to_json(latest)))
        for other in folder.glob("step-*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)


def load_sharded(directory: str | Path, model: nn.Module, training: TrainConfig, config: dict) -> dict[str, Any]:
    """What `Run.state` returned when `save_sharded` wrote it, cut for the ranks that there are now.

    Every rank has to call it, with the model as `distribute` returned it; its weights are overwritten. CourseError
    when there is nothing to resume, when a part is damaged, and when it belongs to a run with another config.
    """
    folder = Path(directory) / FOLDER
    path = folder / LATEST
    if not path.exists():
        raise CourseError(f"{path} does not exist: there is nothing to resume, start without --resume")
    latest = parse_json(path, path.read_bytes())
    if latest.get("format") != FORMAT:
        raise CourseError(f"{path} is not of format {FORMAT}: start again without --resume")
    different = differences(latest["config"], parse_json(path, to_json(config)))
    if different:
        what = "; ".join(different)
        raise CourseError(f"{path} belongs to another run ({what}): use the same options, or start without --resume")
    run = Run(model, training, build_optimizers(model, training), latest["step"], latest["history"])
    weights, averages = get_state_dict(model, run.optimizers)  # of the right shapes; their values do not matter
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*single process")  # that there is one is no surprise
            dcp.load({"model": weights, "optimizers": averages}, checkpoint_id=folder / latest["folder"])
    except (Exception, CheckpointException) as error:  # the latter is none of Python's ordinary exceptions
        raise CourseError(f"{folder / latest['folder']} is damaged: start again without --resume") from error
    set_state_dict(model, run.optimizers, model_state_dict=weights, optim_state_dict=averages)
    return run.state()


def sharded_checkpoint_every(every: int, directory: str | Path, config: dict) -> Callable[[Run], None]:
    """A call-back for `train` like `checkpoint.checkpoint_every`, for every rank."""

    def callback(run: Run) -> None:
        if run.due(every):
            save_sharded(directory, run, config)

    return callback


def remove_sharded(directory: str | Path) -> None:
    """Remove what `save_sharded` wrote, when the run is done."""
    if rank() == 0:
        shutil.rmtree(Path(directory) / FOLDER, ignore_errors=True)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights, put together on the CPU; every rank has to call it, and every rank gets them."""
    return {name: whole(tensor).detach().cpu() for name, tensor in model.state_dict().items()}
