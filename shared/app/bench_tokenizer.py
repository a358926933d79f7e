"""Our tokenizer's speed beside compiled ones: Rust's `tokenizers` for training, `tiktoken` for encoding."""

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from shared.corpora import load_corpus
from shared.errors import CourseError
from shared.text.bpe import SPLIT_PATTERN, BPETokenizer

CHARACTERS = 1_100_000
VOCAB_SIZE = 1024
ROUNDS = 3
TRAINING_BOUND = 1 / 5  # of the peer's speed: Python beside Rust
ENCODING_BOUND = 1 / 8


def bench_text(path: str | Path | None) -> tuple[str, str]:
    """A text and its name: the file, else Tiny Shakespeare where COURSE_DATA has it, else Python's own sources."""
    data = os.environ.get("COURSE_DATA")
    if path is None and data and (Path(data) / "tinyshakespeare.txt").is_file():
        path = Path(data) / "tinyshakespeare.txt"
    corpus = load_corpus("python-code" if path is None else str(path))
    text = "".join([*corpus.train, *corpus.val])
    if path is None:
        text = text[:CHARACTERS]
    return text, corpus.name


def train_with_rust(text: str, vocab_size: int) -> int:
    """Train a byte-level BPE vocabulary with `tokenizers`; returns its size."""
    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    peer.train_from_iterator([text], trainer)
    return peer.get_vocab_size()


def best_seconds(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    """The shortest of ROUNDS runs of each, by turns, so that both meet the same load of the machine."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, run in zip(seconds, (ours, peer), strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


def compare_speed(
    name: str, n_bytes: int, ours: Callable[[], object], peer: Callable[[], object], settings: dict[str, Any]
) -> dict[str, Any]:
    """One record: speeds in MB/s, their ratio (1 is as fast as the peer), and whether it reaches the bound."""
    our_seconds, peer_seconds = best_seconds(ours, peer)
    bound = settings["bound"]
    ratio = peer_seconds / our_seconds
    settings = settings | {"unit": "MB/s", "bytes": n_bytes, "threads": 1, "best_of": ROUNDS}
    speeds = {"ours": n_bytes / our_seconds / 1e6, "peer": n_bytes / peer_seconds / 1e6}
    return {"name": name, **speeds, "ratio": ratio, "settings": settings, "bound": bound, "ok": ratio >= bound}


def bench_tokenizer(path: str | Path | None = None) -> list[dict[str, Any]]:
    """Train to VOCAB_SIZE and encode the same text, ours and theirs, one thread each: a record for each of the two.

    Encoding starts with an empty memory of words each time, and both sides use the same ranks.
    """
    text, source = bench_text(path)
    n_bytes = len(text.encode("utf-8"))
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        training = compare_speed(
            "bpe_training",
            n_bytes,
            lambda: BPETokenizer.train(text, VOCAB_SIZE),
            lambda: train_with_rust(text, VOCAB_SIZE),
            {
                "peer": f"tokenizers {version('tokenizers')} (Rust)",
                "bound": TRAINING_BOUND,
                "text": source,
                "vocab_size": VOCAB_SIZE,
            },
        )
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
    tokenizer = BPETokenizer.train(text, VOCAB_SIZE)
    compiled = tiktoken.Encoding("peer", pat_str=SPLIT_PATTERN, mergeable_ranks=tokenizer.ranks, special_tokens={})
    if tokenizer.encode(text) != compiled.encode_ordinary(text):
        raise CourseError(f"{source}: our ids differ from tiktoken's, so their speeds can't be compared")
    encoding = compare_speed(
        "bpe_encoding",
        n_bytes,
        lambda: BPETokenizer(tokenizer.ranks).encode(text),
        lambda: compiled.encode_ordinary(text),
        {
            "peer": f"tiktoken {version('tiktoken')} (Rust)",
            "bound": ENCODING_BOUND,
            "text": source,
            "vocab_size": VOCAB_SIZE,
        },
    )
    return [training, encoding]
