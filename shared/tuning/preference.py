"""Preferences: learn from pairs of answers, one better than the other, with one loss and no reward model.

Source: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (Rafailov et al., 2023).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from shared.errors import CourseError
from shared.model.gpt import LanguageModel
from shared.text.bpe import BPETokenizer
from shared.text.loader import IGNORE_INDEX, rows_of_step
from shared.text.template import render_conversation
from shared.training.evaluate import cross_entropy, document_nats
from shared.training.train import Batch, Loss


class Answer(NamedTuple):
    """One question and one answer to it, as the chat template reads them."""

    user: str
    assistant: str


class Pair(NamedTuple):
    """One question and two answers to it, of which the first is the better one."""

    user: str
    chosen: str
    rejected: str


def response_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """ln of the probability of each whole response: (..., T, V) and (..., T) -> (...), in nats.

    targets hold IGNORE_INDEX wherever no token of the response is to be predicted. A sum and not a mean: the
    probability of a text is the product of those of its tokens.
    """
    return -cross_entropy(logits, targets, reduction="none").sum(dim=-1)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """-ln p(the chosen answer wins) of each pair, in nats: four (B,) of ln probabilities of responses -> (B,).

    beta prices the distance from the reference model: a small one lets the policy go far.
    Source: Rafailov et al. (2023), equation 7.
    """
    rewards_chosen = beta * (policy_chosen - reference_chosen)  # (B,)
    rewards_rejected = beta * (policy_rejected - reference_rejected)  # (B,)
    return -logsigmoid(rewards_chosen - rewards_rejected)


def pad_pairs(documents: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of B pairs, both (B, 2, T) int64, from 2 B documents: chosen, rejected, chosen, ...

    T is the length of the longest, less one. Targets are IGNORE_INDEX outside the responses and in the filler, which
    stands on the right, where causal attention hides it from every token that counts.
    """
    longest = max(map(len, documents)) - 1
    inputs = torch.zeros(len(documents), longest, dtype=torch.int64)
    targets = torch.full((len(documents), longest), IGNORE_INDEX)
    for row, (ids, is_response) in enumerate(zip(documents, masks, strict=True)):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        marks = torch.tensor(is_response[1:])
        targets[row, : len(ids) - 1] = torch.tensor(ids[1:]).masked_fill(~marks, IGNORE_INDEX)
    return inputs.unflatten(0, (-1, 2)), targets.unflatten(0, (-1, 2))  # (B, 2, T) each


class PreferenceData:
    """Pairs as documents, with what the reference model thinks of them: a function from the step to a batch.

    model: the reference. Its ln probabilities of the chosen and the rejected answers, `reference` (N, 2), are computed
    once, for it never changes. Raises CourseError for no pairs, and for one that does not fit the context.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: BPETokenizer, pairs: Sequence[Pair], batch_size: int = 8, seed: int = 0
    ) -> None:
        answers = [Answer(pair.user, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
        rendered = [render_conversation(tokenizer, [answer]) for answer in answers]
        self.documents = [ids for ids, _ in rendered]
        self.masks = [marks for _, marks in rendered]
        longest, room = max(map(len, self.documents), default=0), model.config.context + 1  # the last is never read
        if not 0 < longest <= room:
            raise CourseError(f"the longest answer takes {longest} tokens with its question: give pairs of 1 to {room}")
        self.batch_size, self.seed = batch_size, seed
        self.reference = self.log_probabilities(model)

    def __len__(self) -> int:
        return len(self.documents) // 2

    def log_probabilities(self, model: nn.Module, precision: str = "fp32") -> Tensor:
        """ln of the probability that the model gives to each answer, (N, 2): chosen, rejected."""
        nats, _ = document_nats(model, self.documents, self.masks, precision=precision)
        return -torch.from_numpy(nats).float().view(-1, 2)  # (N, 2)

    def __call__(self, step: int) -> Batch:
        """The batch at `step`: inputs (B, 2, T), targets (B, 2, T) and the reference's ln probabilities (B, 2)."""
        rows = rows_of_step(step, self.batch_size, len(self), self.seed).tolist()
        members = [member for row in rows for member in (2 * row, 2 * row + 1)]
        documents, masks = ([whole[member] for member in members] for whole in (self.documents, self.masks))
        return *pad_pairs(documents, masks), self.reference[rows]


def preference_loss(beta: float) -> Loss:
    """The loss of direct preference optimisation for the one training loop: summed over the pairs of a batch."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, targets, reference = batch  # (B, 2, T), (B, 2, T), (B, 2)
        logits = model(inputs.flatten(0, 1))  # (2 B, T, V)
        policy = response_log_probabilities(logits, targets.flatten(0, 1)).view(-1, 2)  # (B, 2)
        losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta)  # (B,)
        return losses.sum(), torch.tensor(len(losses), device=losses.device)

    return loss
