"""Training throughput of our GPT-2 beside transformers' GPT-2: the same weights, the same batches, one process."""

import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.model.huggingface import gpt2_config, gpt2_weights
from shared.training.device import autocast, native_bf16
from shared.training.train import Run, TrainConfig, build_optimizers, train_step

SIZES = GPTConfig(vocab_size=2048, context=256, n_layers=6, n_heads=8, width=256)
BATCH_SIZE = 8
BOUNDS = {"fp32": 1.2, "bf16": 1.5}  # how many times faster ours has to be
WARMUP_STEPS = 2
TIMED_STEPS = 8
RATE, BETAS, CLIP = 3e-4, (0.9, 0.95), 1.0


def bench_batches(data: str | None, shape: tuple[int, int, int], vocab_size: int) -> Tensor:
    """n batches of token ids, (n, B, T + 1): bytes of the file, or random ids. The speed does not depend on them."""
    if data is None:
        return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(0))
    try:
        content = np.fromfile(Path(data), dtype=np.uint8)
    except OSError as error:
        raise CourseError(f"cannot read {data}: {error.strerror}; give a file for --data, or none") from error
    if not len(content):
        raise CourseError(f"{data} is empty: give a file with text for --data, or none")
    return torch.from_numpy(np.resize(content, shape).astype(np.int64))


def our_step(model: GPT, precision: str, batch_size: int = BATCH_SIZE) -> Callable[[Tensor], float]:
    """One step of our own loop with AdamW, as a function from a batch (B, T + 1) to its loss."""
    config = TrainConfig(
        steps=10**6,
        batch_size=batch_size,
        optimizer="adamw",
        learning_rate=RATE,
        betas=BETAS,
        warmup=0,
        clip=CLIP,
        precision=precision,
    )
    run = Run(model, config, build_optimizers(model, config))
    return lambda ids: train_step(run, (ids[:, :-1], ids[:, 1:]))["loss"]


def their_step(model: Any, precision: str) -> Callable[[Tensor], float]:
    """The same step with transformers' model and PyTorch's loss, clipping and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0)

    def step(ids: Tensor) -> float:
        with autocast(torch.device("cpu"), precision):
            logits = model(ids[:, :-1], use_cache=False).logits  # (B, T, V)
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def build_pair() -> tuple[GPT, Any]:
    """Our GPT and transformers' GPT-2 with the same weights, both in training mode, without dropout."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # otherwise it looks for a network
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:  # an oracle, not part of what the course runs on
        raise CourseError("bench pretrain needs transformers: pip install -r requirements.txt") from error
    torch.manual_seed(0)
    ours = GPT(SIZES)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    no_specials = {"bos_token_id": None, "eos_token_id": None}
    options = {**gpt2_config(SIZES), **no_dropout, **no_specials, "attn_implementation": "sdpa"}
    theirs = GPT2LMHeadModel(GPT2Config(**options))
    theirs.load_state_dict(gpt2_weights(ours), strict=False)
    theirs.tie_weights()
    return ours.train(), theirs.train()


def seconds_per_step(steps: list[Callable[[Tensor], float]], batches: Tensor) -> tuple[list[float], list[float]]:
    """The median seconds of each contestant, who take turns at every batch, and the losses at the first batch."""
    first = [step(batches[0]) for step in steps]
    seconds: list[list[float]] = [[] for _ in steps]
    for number, ids in enumerate(batches[1:]):
        for step, times in zip(steps, seconds, strict=True):
            start = perf_counter()
            step(ids)
            if number >= WARMUP_STEPS:
                times.append(perf_counter() - start)
    return [float(np.median(times)) for times in seconds], first


def bench_pretrain(data: str | None = None) -> list[dict]:
    """Tokens per second in training, ours and transformers' GPT-2, in float32 and, where it is native, in bfloat16.

    Returns one dict for each precision: name, ours, peer, ratio, settings, bound, ok. data: a file to train on
    (random tokens when None).
    """
    shape = (1 + WARMUP_STEPS + TIMED_STEPS, BATCH_SIZE, SIZES.context + 1)
    batches = bench_batches(data, shape, SIZES.vocab_size)
    settings = {
        "unit": "tokens/s",
        "peer": f"transformers {version('transformers')} GPT2LMHeadModel, SDPA, torch AdamW",
        **asdict(SIZES),
        "batch_size": BATCH_SIZE,
        "threads": torch.get_num_threads(),
        "median_of": TIMED_STEPS,
    }
    rows = []
    for precision in ("fp32", "bf16") if native_bf16("cpu") else ("fp32",):
        ours, theirs = build_pair()
        times, losses = seconds_per_step([our_step(ours, precision), their_step(theirs, precision)], batches)
        if abs(losses[0] - losses[1]) > 0.01:
            raise RuntimeError(f"the two models do not do the same work: first losses {losses}")
        speeds = [BATCH_SIZE * SIZES.context / seconds for seconds in times]
        rows.append(
            {
                "name": f"pretrain_{precision}",
                "ours": speeds[0],
                "peer": speeds[1],
                "ratio": speeds[0] / speeds[1],
                "settings": {**settings, "precision": precision},
                "bound": BOUNDS[precision],
                "ok": speeds[0] / speeds[1] >= BOUNDS[precision],
            }
        )
    return rows
