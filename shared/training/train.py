"""The training loop of every stage: pretraining and tuning differ in their data and their loss, not in the loop.

One step: read the batch, sum the loss over its targets, go back for the gradient, divide by the number of targets,
clip, step the optimisers. The batch and the dropout at a step are functions of (seed, step), so a run that was
stopped and resumed goes on exactly as if nothing had happened.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from shared.errors import CourseError
from shared.text.loader import IGNORE_INDEX, Shard, get_batch
from shared.training.device import PRECISIONS, autocast, device_of
from shared.training.distributed import rank, sum_gradients, sum_over_ranks, world_size
from shared.training.evaluate import cross_entropy, evaluating
from shared.training.optim import (
    AdamW,
    Muon,
    clip_gradients,
    parameter_groups,
    warmup_cosine,
    warmup_stable_decay,
)

Batch = Sequence[Tensor]  # tensors that share their first axis, the rows of the batch
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]  # -> (sum over the targets, number of targets)


def next_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of language modelling, for batch = (inputs, targets), both (B, T): sum in nats (), and how many ()."""
    inputs, targets = batch
    return cross_entropy(model(inputs), targets, reduction="sum"), (targets != IGNORE_INDEX).sum()


def seed_step(seed: int, step: int) -> None:
    """Seed PyTorch's generators, which dropout draws from, with (seed, step, rank) and with nothing else."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0]))


def accumulate_gradients(
    model: nn.Module, batch: Batch, micro_batches: int, loss: Loss = next_token_loss, precision: str = "auto"
) -> float:
    """Set every .grad to the gradient of the mean loss over all targets of the step, and return that mean.

    The micro-batches, and the ranks, may hold unequal numbers of targets, and a mean of their means would weigh the
    targets of a short one more. So gradients of *sums* are added up, and divided once by the number of all targets.
    """
    device = device_of(model)
    total = torch.zeros(2, device=device)  # the loss, the number of targets
    for micro_batch in zip(*(tensor.chunk(micro_batches) for tensor in batch), strict=True):
        with autocast(device, precision):
            summed, count = loss(model, [tensor.to(device) for tensor in micro_batch])
        summed.backward()
        total += torch.stack([summed.detach(), count])
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    sum_over_ranks([total])
    sum_gradients(model, gradients)
    summed_loss, targets = total.tolist()
    torch._foreach_mul_(gradients, 1 / max(1.0, targets))
    return summed_loss / max(1.0, targets)


OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("stable", "cosine")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Counts are in steps and rows; a learning rate is the highest that its schedule reaches.

    batch_size: rows per step, over all micro-batches and processes; micro_batches: in how many pieces a process reads
    its rows (more pieces need less memory and change nothing else). optimizer: "muon" (Muon for the matrices inside
    the blocks, AdamW for the rest) or "adamw" (for everything). learning_rate is AdamW's, for the embeddings only
    where embedding_learning_rate is None; matrix_learning_rate is Muon's. schedule: "cosine" or "stable" (level, then
    a straight fall in the last `decay` steps). clip: the largest norm of the gradient, 0 for none. precision: auto,
    bf16, fp32.
    """

    steps: int
    batch_size: int = 16
    micro_batches: int = 1
    optimizer: str = "muon"
    learning_rate: float = 3e-3
    embedding_learning_rate: float | None = None
    matrix_learning_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    weight_decay: float = 0.0
    schedule: str = "stable"
    warmup: int = 20
    decay: int = 100
    floor: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("micro_batches", 1), ("warmup", 0), ("decay", 0)):
            if getattr(self, name) < least:
                raise CourseError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.micro_batches > self.batch_size:
            raise CourseError(f"micro_batches is {self.micro_batches}: use at most batch_size, {self.batch_size}")
        for name, words in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in words:
                raise CourseError(f"{name} {getattr(self, name)!r} is unknown: choose one of {', '.join(words)}")


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimisers for the four groups of parameters; each group remembers its highest learning rate as "peak".

    Only matrices, of the blocks and of the head, decay: pulling a gain towards 0 or a rare word's embedding away
    from where it was put would gain nothing.
    """
    rates = {"embeddings": config.embedding_learning_rate}
    if config.optimizer == "muon":
        rates["matrices"] = config.matrix_learning_rate
    for_muon: list[dict] = []
    for_adamw: list[dict] = []
    for name, parameters in parameter_groups(model).items():
        if parameters:
            peak = rates.get(name) or config.learning_rate
            decay = config.weight_decay if name in ("matrices", "head") else 0.0
            group = {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
            (for_muon if name == "matrices" and config.optimizer == "muon" else for_adamw).append(group)
    optimizers: list[torch.optim.Optimizer] = [Muon(for_muon, momentum=config.momentum)] if for_muon else []
    return optimizers + ([AdamW(for_adamw, betas=config.betas)] if for_adamw else [])


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """What all learning rates are multiplied with at `step`, counted from 0."""
    if config.schedule == "cosine":
        return warmup_cosine(step, config.steps, config.warmup, config.floor)
    return warmup_stable_decay(step, config.steps, config.warmup, config.decay, config.floor)


@dataclass
class Run:
    """A training run in progress: what the call-backs read, and what has to be saved to go on later.

    step counts the finished steps. history holds one record for each: step, loss (nats per token), norm (of the
    gradient before clipping), factor (of the learning rates), and what call-backs add, as val_loss.
    """

    model: nn.Module
    config: TrainConfig
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    step: int = 0
    history: list[dict] = field(default_factory=list)
    interrupted: bool = False
    enough: bool = False  # a call-back may end the run before all steps are done

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or as many as were worth doing."""
        return self.enough or self.step >= self.config.steps

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.finished or (every > 0 and self.step % every == 0)

    def state(self) -> dict:
        """Everything that the rest of the run depends on: weights, averages of the optimisers, step, history."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": optimizers,
            "history": self.history,
        }

    def restore(self, state: dict) -> None:
        """Go back to what `state` returned."""
        self.step, self.history = state["step"], list(state["history"])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def train_step(run: Run, batch: Batch, loss: Loss = next_token_loss) -> dict:
    """One step of the loop, in place; returns its record. batch: the rows of this process, (B, ...) each."""
    config, model = run.config, run.model
    factor = learning_rate_factor(config, run.step)
    seed_step(config.seed, run.step)
    mean = accumulate_gradients(model, batch, config.micro_batches, loss, config.precision)
    norm = clip_gradients(model.parameters(), config.clip or float("inf")).item()
    if not np.isfinite(mean + norm):  # before the weights are touched, so that the last checkpoint stays good
        raise CourseError(f"the loss is {mean} and the gradient {norm} at step {run.step + 1}: lower the learning rate")
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"step": run.step + 1, "loss": mean, "norm": norm, "factor": factor}


class TrainingInterrupted(Exception):
    """Ctrl-C was pressed: the step at hand was finished and the call-backs have run, so a checkpoint is on disk."""


def batch_at(data: Shard | Callable[[int], Batch], step: int, config: TrainConfig) -> Batch:
    """This process's share of the batch at `step`: from a shard, or from a function that knows its batches."""
    if isinstance(data, Shard):
        return get_batch(data, step, config.batch_size, config.seed, rank(), world_size())
    return data(step)


@contextmanager
def finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C only sets the event; a second one interrupts at once.

    A KeyboardInterrupt in the middle of a step would leave some weights updated and others not.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def handle(_signal: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


def train(
    model: nn.Module,
    data: Shard | Callable[[int], Batch],
    config: TrainConfig,
    callbacks: Sequence[Callable[[Run], None]] = (),
    state: dict | None = None,
    loss: Loss = next_token_loss,
) -> list[dict]:
    """Train the model in place and return the history, one record per step.

    data: a shard, or a function from the step to this process's batch. callbacks are called in their order at the end
    of every step. state: what `Run.state` returned, to go on from there. Raises TrainingInterrupted after Ctrl-C, and
    CourseError when the loss is no longer a number.
    """

    run = Run(model, config, build_optimizers(model, config))
    if state is not None:
        run.restore(state)
    model.train()
    with finish_step_on_interrupt() as stop:
        while not run.finished:
            record = train_step(run, batch_at(data, run.step, config), loss)
            run.step += 1
            run.history.append(record)
            run.interrupted = stop.is_set()
            for callback in callbacks:
                callback(run)
            if run.interrupted and not run.finished:
                raise TrainingInterrupted(f"stopped after step {run.step} of {config.steps}")
    return run.history


def validate_every(every: int, measure: Callable[[nn.Module], float], name: str = "val_loss") -> Callable[[Run], None]:
    """A call-back that writes measure(model) into the step's record, every so many steps and at the end."""

    def callback(run: Run) -> None:
        if run.due(every):
            run.history[-1][name] = measure(run.model)

    return callback


def sample_every(every: int, write_text: Callable[[nn.Module], str]) -> Callable[[Run], None]:
    """A call-back that shows what the model writes, every so many steps."""

    def callback(run: Run) -> None:
        if run.due(every):
            with evaluating(run.model):
                tqdm.write(f"step {run.step}: {write_text(run.model)}", file=sys.stderr)

    return callback


def show_progress(description: str = "training") -> Callable[[Run], None]:
    """A call-back that draws a bar with the loss and the time left; where nobody watches, a line every 30 s."""
    bar: tqdm | None = None

    def callback(run: Run) -> None:
        nonlocal bar
        if bar is None:
            interval = 0.2 if sys.stderr.isatty() else 30
            start, total = run.step - 1, run.config.steps
            bar = tqdm(desc=description, initial=start, total=total, unit="step", mininterval=interval)
        bar.set_postfix(loss=f"{run.history[-1]['loss']:.3f}", refresh=False)
        bar.update()
        if run.finished or run.interrupted:
            bar.close()

    return callback


def stop_early(patience: int, name: str = "val_loss") -> Callable[[Run], None]:
    """A call-back that ends a run when `name` has not fallen `patience` measurements in a row, and in any case leaves
    the best weights behind.

    It comes after the `validate_every` that measures. What was best is kept in memory: a run that is resumed counts
    from there. After "Early Stopping - But When?" (Prechelt, 1998), whose criterion UP waits for as many rises.
    """
    best, weights, waited = float("inf"), {}, 0

    def callback(run: Run) -> None:
        nonlocal best, weights, waited
        if name in run.history[-1]:
            value, waited = run.history[-1][name], waited + 1
            if value < best:
                best, waited = value, 0
                weights = {key: tensor.detach().clone() for key, tensor in run.model.state_dict().items()}
            run.enough = run.enough or waited >= patience
        if run.finished and weights:
            run.model.load_state_dict(weights)

    return callback
