"""A look inside the model at one word of its answer: what else it might have said, and where each head looked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import CourseError
from shared.model.attention import attention_maps
from shared.model.gpt import LanguageModel
from shared.text.bpe import BPETokenizer
from shared.training.evaluate import evaluating


@dataclass(frozen=True)
class Look:
    """What the model read before it chose a token, what it weighed, and where it looked.

    tokens and ids: what stood before the choice, T of each. candidates: the likeliest next tokens with their
    probabilities, falling. chosen: the token that was taken, and its probability. attention (L, H, T): the weights
    with which each head of each layer looked back when the choice was made.
    """

    tokens: list[str]
    ids: list[int]
    candidates: list[tuple[str, float]]
    chosen: tuple[str, float]
    attention: Tensor


def token_texts(tokenizer: BPETokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as text by itself; bytes that are no whole character become U+FFFD."""
    return [tokenizer.decode([token]) for token in ids]


@torch.inference_mode()
def look_inside(
    model: LanguageModel, tokenizer: BPETokenizer, ids: Sequence[int], position: int, candidates: int = 8
) -> Look:
    """What happened when the token at `position` of ids was chosen: one forward pass over what stood before it.

    When more than the context stood there, its last part is read. Raises CourseError for a position without a past.
    """
    if not 1 <= position < len(ids):
        raise CourseError(f"position {position} is out of range: choose 1 to {len(ids) - 1}")
    before = list(ids[max(0, position - model.config.context) : position])
    row = torch.tensor([before], device=next(model.parameters()).device)  # (1, T)
    with evaluating(model):
        probabilities = model(row)[0, -1].float().softmax(dim=-1)  # (V,)
        maps = attention_maps(model, row)  # (L, 1, H, T, T)
    best = probabilities.topk(min(candidates, len(probabilities)))
    texts = token_texts(tokenizer, best.indices.tolist())
    chosen = (tokenizer.decode([ids[position]]), float(probabilities[ids[position]]))
    return Look(
        token_texts(tokenizer, before),
        before,
        list(zip(texts, best.values.tolist(), strict=True)),
        chosen,
        maps[:, 0, :, -1].cpu(),
    )
