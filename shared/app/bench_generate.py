"""How fast a model writes: ours with its cache against transformers' `generate` with the same weights."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.model.generate import generate
from shared.model.gpt import GPT, GPTConfig
from shared.model.huggingface import gpt2_config, gpt2_weights

CONFIG = GPTConfig(vocab_size=2048, context=256, n_layers=6, n_heads=8, width=256)
PROMPT_TOKENS, NEW_TOKENS = 8, 200
BOUNDS = {1: 2.0, 16: 1.0}  # batch size -> how many times as fast as transformers ours must be
ROUNDS = 5


def build_pair() -> tuple[GPT, Any]:
    """A GPT with random weights, and transformers' GPT-2 with the same."""
    from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds to import, and only this bench needs it

    model = GPT(CONFIG).eval()
    fields = {key: value for key, value in gpt2_config(CONFIG).items() if key not in ("architectures", "model_type")}
    peer = GPT2LMHeadModel(GPT2Config(**fields, bos_token_id=None, eos_token_id=None)).eval()
    peer.load_state_dict(gpt2_weights(model), strict=False)  # the head, which is tied, is not in the weights
    return model, peer


def fastest(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The shortest of ROUNDS times of each run, in seconds; they take turns, so that a slow moment hits all alike."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def bench_generate(_data: str | None = None) -> list[dict[str, Any]]:
    """New tokens per second, greedy, for one row and for several: one dict for each batch size.

    ours, peer: tokens/s; ratio: ours / peer; ok: whether the ratio reaches its bound and both wrote the same tokens.
    """
    torch.manual_seed(0)
    model, peer = build_pair()
    results = []
    for batch, bound in BOUNDS.items():
        prompt = torch.randint(CONFIG.vocab_size, (batch, PROMPT_TOKENS))  # (B, T)

        def ours(prompt: Tensor = prompt) -> Tensor:
            return generate(model, prompt, NEW_TOKENS, temperature=0)

        def theirs(prompt: Tensor = prompt) -> Tensor:
            return peer.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)

        same_text = torch.equal(ours(), theirs())  # warms both up, too
        seconds = fastest({"ours": ours, "peer": theirs})
        ratio = seconds["peer"] / seconds["ours"]
        tokens = batch * NEW_TOKENS
        results.append(
            {
                "name": f"generate, batch {batch}",
                "ours": round(tokens / seconds["ours"], 1),
                "peer": round(tokens / seconds["peer"], 1),
                "ratio": round(ratio, 3),
                "settings": bench_settings(batch, same_text),
                "bound": bound,
                "ok": ratio >= bound and same_text,
            }
        )
    return results


def bench_settings(batch: int, same_text: bool) -> dict[str, Any]:
    """What a reader must know to repeat the measurement."""
    return {
        "unit": "new tokens/s",
        "peer": "transformers GPT2LMHeadModel.generate",
        "model": f"GPT-2, V {CONFIG.vocab_size} D {CONFIG.width} L {CONFIG.n_layers} H {CONFIG.n_heads}",
        "batch": batch,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "dtype": "float32",
        "attention": "SDPA",
        "threads": torch.get_num_threads(),
        "sampling": "greedy",
        "rounds": ROUNDS,
        "same_text": same_text,
    }
