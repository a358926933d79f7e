"""Training throughput of the GPT in NumPy beside our GPT in PyTorch: the same weights, the same batches, float32."""

import os
from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import torch

from shared.app.bare import to_torch
from shared.app.bench_pretrain import BETAS, CLIP, RATE, bench_batches, our_step
from shared.bare.gpt import BareConfig, BareGPT
from shared.bare.optim import AdamW
from shared.bare.train import BareRun, BareTrainConfig
from shared.bare.train import train_step as bare_step
from shared.memory import keep_freed_memory

SIZES = BareConfig(vocab_size=1024, context=128, n_layers=4, n_heads=4, width=128)
BATCH_SIZE = 16
BOUND = 1 / 4  # of PyTorch's speed
WARMUP_STEPS = 2
TIMED_STEPS = 12


def numpy_step(model: BareGPT) -> Callable[[torch.Tensor], float]:
    """The step of `our_step` in NumPy, as a function from a batch (B, T + 1) to its loss."""
    config = BareTrainConfig(10**6, BATCH_SIZE, RATE, BETAS, warmup=0, clip=CLIP)
    run = BareRun(model, config, AdamW(model.parameters(), betas=BETAS))

    def step(batch: torch.Tensor) -> float:
        ids = batch.numpy()
        return bare_step(run, ids[:, :-1], ids[:, 1:])["loss"]

    return step


def seconds_per_step(
    steps: list[Callable[[torch.Tensor], float]], batches: torch.Tensor
) -> tuple[list[float], np.ndarray]:
    """The median seconds of each contestant, who take turns at every batch, and all their losses (contestants, n)."""
    seconds: list[list[float]] = [[] for _ in steps]
    losses: list[list[float]] = [[] for _ in steps]
    for number, ids in enumerate(batches):
        for step, times, values in zip(steps, seconds, losses, strict=True):
            start = perf_counter()
            values.append(step(ids))
            if number >= WARMUP_STEPS:
                times.append(perf_counter() - start)
    return [float(np.median(times)) for times in seconds], np.array(losses)


def bench_bare(data: str | None = None) -> list[dict[str, Any]]:
    """Tokens per second in training, NumPy beside PyTorch, each with as many threads as it takes by itself.

    Returns one dict: name, ours, peer, ratio, settings, bound, ok. data: a file to train on (random tokens when None).
    """
    keep_freed_memory()
    shape = (WARMUP_STEPS + TIMED_STEPS, BATCH_SIZE, SIZES.context + 1)
    batches = bench_batches(data, shape, SIZES.vocab_size)
    model = BareGPT(SIZES, seed=0)
    times, losses = seconds_per_step(
        [numpy_step(model), our_step(to_torch(model).train(), "fp32", BATCH_SIZE)], batches
    )
    if np.abs(losses[0] - losses[1]).max() > 0.01:
        raise RuntimeError(f"the two models do not do the same work: losses {losses}")
    speeds = [BATCH_SIZE * SIZES.context / seconds for seconds in times]
    settings = {
        "unit": "tokens/s",
        "peer": f"our GPT in PyTorch {torch.__version__}",
        **asdict(SIZES),
        "batch_size": BATCH_SIZE,
        "dtype": "float32",
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "blas_threads": os.environ.get("OMP_NUM_THREADS"),
        "median_of": TIMED_STEPS,
    }
    ratio = speeds[0] / speeds[1]
    return [
        {
            "name": "bare_training",
            "ours": speeds[0],
            "peer": speeds[1],
            "ratio": ratio,
            "settings": settings,
            "bound": BOUND,
            "ok": ratio >= BOUND,
        }
    ]
