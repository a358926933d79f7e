"""A whole run without any machine-learning library: corpus, tokenizer, the GPT in NumPy, and what it writes.

PyTorch is imported in two functions only, those that carry weights from one model to the other.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from shared.app.progress import Say, watch
from shared.bare.gpt import BareConfig, BareGPT, generate, load_bare, load_weights, save_bare
from shared.bare.train import BareRun, BareTrainConfig, document_loss, lay_in_rows, ngram_loss, train
from shared.corpora import World, load_corpus
from shared.corpora.base import TOKENIZER_TEXT, excerpt
from shared.errors import CourseError
from shared.files import write_atomically
from shared.memory import keep_freed_memory
from shared.text.bpe import BPETokenizer, vocabulary_from_json, vocabulary_to_json
from shared.text.template import END_OF_TEXT, SPECIAL_TOKENS, render_story, special_id

if TYPE_CHECKING:
    from shared.model.gpt import GPT

STORIES = 12_000  # what the corpora of stories are asked for
VOCAB_SIZE = 1024
SIZES: dict[str, Any] = {"context": 256, "n_layers": 3, "n_heads": 3, "width": 96}
STEPS = 2_800
TRAINING: dict[str, Any] = {"batch_size": 8, "learning_rate": 4e-3, "weight_decay": 0.1}
WARMUP_SHARE, DECAY_SHARE = 0.02, 0.4  # of the steps
MOST_EPOCHS = 10  # over real text: beyond, a small corpus is learnt by heart
JUDGED_STORIES = 200  # written by the trained model for the judge
WATCHED_TEXTS = 200  # unseen texts for the losses
BATCH = 50  # stories that are written side by side


def bare_train(
    corpus_name: str,
    out: Path,
    *,
    stories: int = STORIES,
    world: Path | None = None,
    steps: int | None = None,
    vocab_size: int = VOCAB_SIZE,
    seed: int = 0,
    log: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Train a tokenizer and a GPT on a corpus, save both in one .npz file, and measure; returns the figures.

    Losses are in nats per token of unseen texts; what the corpus does not allow is None. `log` names a file for a line
    of JSON about the run, one for each step and one with the figures.
    """
    require_writable(out)
    keep_freed_memory()
    corpus = load_corpus(corpus_name, stories=stories, seed=seed, world=world, watch=watch)
    tokenizer = BPETokenizer.train(excerpt(corpus.train, TOKENIZER_TEXT), vocab_size, SPECIAL_TOKENS)
    documents = [render_story(tokenizer, text) for text in watch(corpus.train, "encoding texts")]
    unseen = [render_story(tokenizer, text) for text in corpus.val[:WATCHED_TEXTS]]
    model = BareGPT(BareConfig(tokenizer.vocab_size, **SIZES), seed)
    rows = lay_in_rows(documents, model.config.context)
    config = training_config(len(rows), steps, corpus.world is not None, seed)
    n_parameters = sum(tensor.data.size for tensor in model.parameters().values())
    say(f"model: {n_parameters:,} parameters, {tokenizer.vocab_size:,} tokens; {config.steps:,} steps")
    history = train(model, rows, config, [show_progress()])
    save_bare(out, model, vocabulary_to_json(tokenizer.ranks, list(tokenizer.special_tokens)))
    figures: dict[str, Any] = {"out": str(out), "parameters": n_parameters, "steps": config.steps}
    figures["train_loss"] = float(np.mean([record["loss"] for record in history[-20:]]))
    figures["val_loss"] = document_loss(model, unseen)
    figures["trigram_loss"] = ngram_loss(documents, unseen, tokenizer.vocab_size)
    figures["entropy_floor"] = floor_of(corpus.world, corpus.val[:WATCHED_TEXTS], unseen)
    figures["story_rate"] = None if corpus.world is None else story_rate(model, tokenizer, corpus.world, seed)
    if log is not None:
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        header = {"corpus": corpus_name, "stories": stories, "seed": seed, "versions": versions, **asdict(config)}
        lines = "".join(json.dumps(record) + "\n" for record in [header | asdict(model.config), *history, figures])
        write_atomically(log, lambda file: file.write(lines.encode("utf-8")))
    return figures


def require_writable(out: Path) -> None:
    """Complain about a file that cannot be written before the minutes of training, not after."""
    if out.is_dir():
        raise CourseError(f"{out} is a folder: name the .npz file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"cannot write {out}: {error.strerror}; choose another place") from error
    if not os.access(out.parent, os.W_OK):
        raise CourseError(f"cannot write {out}: its folder is not writable; choose another place")


def training_config(n_rows: int, steps: int | None, stories: bool, seed: int) -> BareTrainConfig:
    """The options of the preset; over real text no more than MOST_EPOCHS, unless the steps were given."""
    if steps is None:
        steps = STEPS if stories else min(STEPS, max(1, MOST_EPOCHS * n_rows // TRAINING["batch_size"]))
    warmup, decay = round(WARMUP_SHARE * steps), round(DECAY_SHARE * steps)
    return BareTrainConfig(steps, **TRAINING, warmup=warmup, decay=decay, seed=seed)


def show_progress() -> Callable[[BareRun], None]:
    """A call-back that draws a bar with the loss and the time left; where nobody watches, a line every 30 s."""
    bar: tqdm | None = None

    def callback(run: BareRun) -> None:
        nonlocal bar
        if bar is None:
            interval = 0.2 if sys.stderr.isatty() else 30
            bar = tqdm(desc="training", total=run.config.steps, unit="step", mininterval=interval)
        bar.set_postfix(loss=f"{run.history[-1]['loss']:.3f}", refresh=False)
        bar.update()
        if run.step == run.config.steps:
            bar.close()

    return callback


# ------------------------------------------------------------------------------------------------------- measuring


def floor_of(world: World | None, texts: Sequence[str], documents: Sequence[Sequence[int]]) -> float | None:
    """The mean -ln p of the texts under the grammar that wrote them, per token that a model has to predict."""
    if world is None:
        return None
    nats = -sum(world.log_probability(text) for text in texts)
    return nats / sum(len(document) - 1 for document in documents)


def story_rate(model: BareGPT, tokenizer: BPETokenizer, world: World, seed: int, n: int = JUDGED_STORIES) -> float:
    """The share of the model's own stories that the judge accepts: temperature 1, no prompt."""
    start = special_id(tokenizer, END_OF_TEXT)
    accepted = 0
    for first in watch(range(0, n, BATCH), "telling stories"):
        prompts = [[start]] * min(BATCH, n - first)
        rows = generate(model, prompts, model.config.context - 1, stop_tokens=[start], seed=seed + first)  # (B, 1 + n)
        for row in rows[:, 1:].tolist():
            accepted += start in row and world.accepts(tokenizer.decode(row[: row.index(start)]))
    return accepted / n


# --------------------------------------------------------------------------------------------------------- writing


def open_bare(path: Path) -> tuple[BareGPT, BPETokenizer]:
    """The model and the tokenizer in a file that `bare_train` wrote; CourseError for any other."""
    model, tokenizer_text = load_bare(path)
    try:
        tokenizer = BPETokenizer(*vocabulary_from_json(json.loads(tokenizer_text)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CourseError(f"{path} holds no tokenizer that we can use: train the model again") from error
    if tokenizer.vocab_size != model.config.vocab_size:
        sizes = f"{tokenizer.vocab_size} and {model.config.vocab_size}"
        raise CourseError(f"{path}: tokenizer and model have vocabularies of {sizes} tokens: train the model again")
    return model, tokenizer


def bare_sample(path: Path, prompt: str, tokens: int, **options: Any) -> str:
    """The continuation of a prompt by at most so many tokens; options as those of `generate`."""
    model, tokenizer = open_bare(path)
    start = special_id(tokenizer, END_OF_TEXT)
    ids = [start, *tokenizer.encode(prompt)]
    if len(ids) > model.config.context:
        raise CourseError(
            f"the prompt has {len(ids)} tokens (its start token included) and the model reads {model.config.context}: "
            "shorten it"
        )
    written = generate(model, [ids], tokens, stop_tokens=[start], **options)[0, len(ids) :].tolist()  # (n,)
    return tokenizer.decode([token for token in written if token != start])


# ------------------------------------------------------------------------------------ from NumPy to PyTorch and back


def to_torch(model: BareGPT) -> GPT:
    """The same model in PyTorch. Fixed positions become learned ones of the same values: they write the same text."""
    import torch

    from shared.model.gpt import GPT, GPTConfig

    config = model.config
    sizes = (config.vocab_size, config.context, config.n_layers, config.n_heads, config.width, config.dropout)
    weights = {name: torch.from_numpy(tensor.data.copy()) for name, tensor in model.parameters().items()}
    if config.positions == "sinusoidal":
        weights["position_embedding.weight"] = torch.from_numpy(model.position_table.copy())
    twin = GPT(GPTConfig(*sizes)).to(weights["token_embedding.weight"].dtype)
    twin.load_state_dict(weights)
    return twin


def from_torch(model: GPT) -> BareGPT:
    """The same model in NumPy, from our PyTorch GPT."""
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    config = model.config
    sizes = (config.vocab_size, config.context, config.n_layers, config.n_heads, config.width, config.dropout)
    twin = BareGPT(BareConfig(*sizes), dtype=weights["token_embedding.weight"].dtype)
    load_weights(twin, weights)
    return twin
