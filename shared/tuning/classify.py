"""Classification: a trained language model reads a text, one vector of it is kept, and a small matrix names the class.

A document is a list of ids. A batch for the one training loop holds ids (B, T), lengths (B,) and labels (B,).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import CourseError
from shared.model.gpt import LanguageModel
from shared.text.loader import rows_of_step
from shared.training.device import device_of
from shared.training.evaluate import cross_entropy, evaluating
from shared.training.train import Batch


def pad_right(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """B documents as one table of ids (B, T) with filler behind the shorter ones, and their lengths (B,), both int64.

    The filler is id 0. Which id it is must not matter: nothing may ever read there.
    """
    lengths = torch.tensor([len(document) for document in documents])  # (B,)
    if not len(documents) or lengths.min() < 1:
        raise CourseError("a text of no tokens has no last token to read: leave empty documents out")
    ids = torch.zeros(len(documents), int(lengths.max()), dtype=torch.int64)  # (B, T)
    for row, document in zip(ids, documents, strict=True):
        row[: len(document)] = torch.tensor(document)
    return ids, lengths


class ClassificationData:
    """Documents and the class of each, from 0: a function from the step to a batch of `batch_size` rows."""

    def __init__(
        self, documents: Sequence[Sequence[int]], labels: Sequence[int], batch_size: int = 32, seed: int = 0
    ) -> None:
        if not documents or len(documents) != len(labels):
            raise CourseError(f"{len(documents)} documents and {len(labels)} labels: give one label for each document")
        self.documents, self.labels = documents, torch.as_tensor(labels)
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return len(self.documents)

    def __call__(self, step: int) -> Batch:
        """The batch at `step`: ids (B, T), lengths (B,), labels (B,). T is the longest row of this batch."""
        rows = rows_of_step(step, self.batch_size, len(self), self.seed).tolist()
        return *pad_right([self.documents[row] for row in rows]), self.labels[rows]


def stratified_split(labels: Sequence[int], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Share out the numbers 0 ... N-1, each to one list, so that every class is cut in the same proportions.

    shares: the wanted part of each list; they add up to 1. Within a class the order is drawn with `seed`.
    """
    if not np.isclose(sum(shares), 1):
        raise CourseError(f"the shares add up to {sum(shares)}: they have to add up to 1")
    rng = np.random.default_rng(seed)
    lists: list[list[int]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(np.asarray(labels) == label))  # (n,)
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, numbers in zip(lists, np.split(members, cuts), strict=True):
            part.extend(numbers.tolist())
    return [sorted(part) for part in lists]


Pool = Callable[[Tensor, Tensor], Tensor]  # hidden (B, T, D) and lengths (B,) -> one vector for each text (B, D)


def last_real(hidden: Tensor, lengths: Tensor) -> Tensor:
    """The vector over each text's own last token: hidden (B, T, D), lengths (B,) -> (B, D).

    The only position from which causal attention has seen the whole text and nothing else.
    """
    rows = torch.arange(len(hidden), device=hidden.device)  # (B,)
    return hidden[rows, lengths - 1]  # (B, D)


def mean_real(hidden: Tensor, lengths: Tensor) -> Tensor:
    """The mean of the vectors over the tokens of each text, filler left out: (B, T, D), (B,) -> (B, D)."""
    columns = torch.arange(hidden.shape[1], device=hidden.device)  # (T,)
    is_real = (columns < lengths[:, None]).unsqueeze(-1)  # (B, T, 1)
    return hidden.masked_fill(~is_real, 0).sum(dim=1) / lengths[:, None]  # (B, D)


def hidden_states(model: LanguageModel, ids: Tensor) -> Tensor:
    """What the output layer of the model would read: ids (B, T) -> (B, T, D), the result of its `final_norm`.

    A hook notes it in passing, so this works for every model that ends in a `final_norm`, and leaves the model as it
    was. The logits that the model goes on to compute are thrown away.
    """
    seen: list[Tensor] = []
    norm = model.get_submodule("final_norm")
    hook = norm.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        model(ids)
    finally:
        hook.remove()
    return seen[0]  # (B, T, D)


class Classifier(nn.Module):
    """A language model with a head for classes: ids (B, T) and lengths (B,) -> scores of the classes (B, C).

    The head starts at zero: before training all classes are equally likely. Source: "Improving Language Understanding
    by Generative Pre-Training" (Radford et al., 2018), section 3.2, which reads the last token in this way.
    """

    def __init__(self, model: LanguageModel, n_classes: int, pool: Pool = last_real) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.pool = model, pool
        self.head = nn.Linear(config.width, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.pool(hidden_states(self.model, ids), lengths))  # (B, C)


def train_top(classifier: Classifier, blocks: int) -> None:
    """Freeze the model but for its last `blocks` blocks, in place. The head always learns; 0 leaves it alone."""
    stack = [*classifier.model.get_submodule("blocks").children()]
    if not 0 <= blocks <= len(stack):
        raise CourseError(f"{blocks} blocks are to be trained, and the model has {len(stack)}")
    classifier.model.requires_grad_(False)
    for block in stack[len(stack) - blocks :]:
        block.requires_grad_(True)


def classification_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss for the one training loop: summed over the texts of a batch in nats (), and how many there are ()."""
    ids, lengths, labels = batch
    summed = cross_entropy(model(ids, lengths), labels, reduction="sum")
    return summed, torch.tensor(len(labels), device=summed.device)


def class_scores(classifier: Classifier, documents: Sequence[Sequence[int]], batch_size: int = 64) -> Tensor:
    """The scores of every class for each of N documents, before the softmax: (N, C), in float32."""
    device, scores = device_of(classifier), []
    with evaluating(classifier):
        for first in range(0, len(documents), batch_size):
            ids, lengths = pad_right(documents[first : first + batch_size])
            scores.append(classifier(ids.to(device), lengths.to(device)).cpu())
    return torch.cat(scores)  # (N, C)


def confusion_matrix(labels: Sequence[int], guesses: Sequence[int], n_classes: int) -> np.ndarray:
    """How often texts of class i were taken for class j: (C, C) counts, the truth in rows."""
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(guesses)), 1)
    return counts


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 10) -> np.ndarray:
    """Texts sorted into bins by how sure the classifier was: (M, 3), for each bin that holds any.

    probabilities: (N, C), labels: (N,). The columns are the share of the texts that lie in the bin, their mean
    confidence (the probability of the guess) and their accuracy; the bins are of equal width and include their upper
    ends. Source: "On Calibration of Modern Neural Networks" (Guo et al., 2017), section 2.
    """
    confidence, guesses = (values.numpy() for values in probabilities.max(dim=-1))  # (N,), (N,)
    right = guesses == labels.numpy()  # (N,)
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)  # (N,)
    members = [place == number for number in np.unique(place)]
    return np.array([[inside.mean(), confidence[inside].mean(), right[inside].mean()] for inside in members])


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 10) -> float:
    """By how much confidence and accuracy differ on average over the bins of `reliability`, each by its share."""
    share, confidence, accuracy = reliability(probabilities, labels, bins).T
    return float((share * np.abs(confidence - accuracy)).sum())
