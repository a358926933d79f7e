"""Word vectors by skip-gram with negative sampling: the gradients written by hand, no graph, no library.

Every word has two vectors: one for when it stands in the centre, one for when it is seen near another word. Training
makes the dot product of a centre with a word that does stand near it large, and that with words drawn at random small.
Words with similar neighbours end up with similar centre vectors. Notation: V words, D width, P pairs, N noise words.

Sources: Mikolov et al. (2013), "Efficient Estimation of Word Representations in Vector Space", section 3.2, and
"Distributed Representations of Words and Phrases and their Compositionality", section 2.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.bare.tensor import sum_by_id
from shared.errors import CourseError


def count_vocabulary(sentences: Sequence[Sequence[str]], min_count: int = 1) -> tuple[list[str], np.ndarray]:
    """The words that occur at least min_count times, the most frequent first, and their counts, int64 (V,)."""
    counts = Counter(word for sentence in sentences for word in sentence)
    words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    if not words:
        raise CourseError(f"no word occurs {min_count} times: give more text, or a smaller min_count")
    return words, np.array([counts[word] for word in words])


def keep_probabilities(counts: np.ndarray, threshold: float = 1e-3) -> np.ndarray:
    """With which probability each occurrence of a word is kept: counts (V,) -> (V,).

    Of frequent words, which tell little about their neighbours, most occurrences are passed over: a word of frequency
    f is kept with the probability sqrt(t / f), at most 1. Source: Mikolov et al. (2013), "Distributed
    Representations", section 2.3.
    """
    frequencies = counts / counts.sum()
    return np.minimum(1, np.sqrt(threshold / frequencies))


def skip_gram_pairs(sentence: np.ndarray, window: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which words stand near which: ids (T,) of a sentence -> centres (P,) and their neighbours (P,).

    Each centre looks 1 to `window` words to both sides, drawn anew for each, so that near words are paired more often
    than distant ones. A word is no neighbour of itself.
    """
    tokens = len(sentence)
    reach = rng.integers(1, window + 1, tokens)  # (T,)
    offsets = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])  # (2 window,)
    places = np.arange(tokens)[:, None] + offsets  # (T, 2 window)
    near = (np.abs(offsets) <= reach[:, None]) & (places >= 0) & (places < tokens)  # (T, 2 window)
    centres, _ = np.nonzero(near)  # (P,)
    return sentence[centres], sentence[places[near]]


def noise_ends(counts: np.ndarray, power: float = 0.75) -> np.ndarray:
    """Where each word's stretch ends when noise probabilities, in proportion to count^0.75, lie end to end: (V,).

    The power lies between what the text does (1) and giving all words alike (0).
    Source: Mikolov et al. (2013), "Distributed Representations", section 2.2.
    """
    ends = np.cumsum(counts.astype(np.float64) ** power)
    return ends / ends[-1]


def draw_noise(ends: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Random words, independent of each other: ids of the given shape, by inverse transform."""
    return np.searchsorted(ends, rng.random(shape), side="right")


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), written with tanh, which cannot overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """ln(sigmoid(x)) = -ln(1 + exp(-x)), exact where the sigmoid itself would round to 0."""
    return -np.logaddexp(0, -x)


def negative_sampling(
    centre: np.ndarray, near: np.ndarray, noise: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The summed loss of P pairs, and its gradients with respect to the three arrays.

    centre (P, D), near (P, D), noise (P, N, D). For one pair, with c the centre, o the neighbour and n_i the noise:
    loss = -ln s(c.o) - sum_i ln s(-c.n_i), s the sigmoid. Since d(-ln s(x))/dx = s(x) - 1 and d(-ln s(-x))/dx = s(x),
    the error of each score is s minus what it should be, 1 or 0, and every gradient is that error times a vector.
    """
    score = np.einsum("pd,pd->p", centre, near)  # (P,)
    noise_scores = np.einsum("pd,pnd->pn", centre, noise)  # (P, N)
    loss = -float(log_sigmoid(score).sum() + log_sigmoid(-noise_scores).sum())
    error = (sigmoid(score) - 1)[:, None]  # (P, 1)
    noise_errors = sigmoid(noise_scores)  # (P, N)
    for_centre = error * near + np.einsum("pn,pnd->pd", noise_errors, noise)  # (P, D)
    for_near = error * centre  # (P, D)
    for_noise = noise_errors[:, :, None] * centre[:, None, :]  # (P, N, D)
    return loss, for_centre, for_near, for_noise


@dataclass(frozen=True)
class Word2VecConfig:
    """How to train. pairs: how many are read at once; a step's update is the sum of theirs, so a word that occurs in
    many of them moves far: keep it below a few times the vocabulary."""

    width: int = 50
    window: int = 4
    noise_words: int = 5
    epochs: int = 5
    learning_rate: float = 0.05
    threshold: float = 1e-3
    min_count: int = 1
    pairs: int = 256
    seed: int = 0


@dataclass(frozen=True)
class WordVectors:
    """words[i] has the centre vector centre[i] and, as a neighbour, near[i]; both tables are float32 (V, D)."""

    words: list[str]
    centre: np.ndarray
    near: np.ndarray

    def id_of(self, word: str) -> int:
        """The row of a word; CourseError for one that is not in the vocabulary."""
        if word not in self.words:
            raise CourseError(f"{word!r} is not among the {len(self.words)} words: choose one that the text holds")
        return self.words.index(word)


def update(vectors: WordVectors, centres: np.ndarray, neighbours: np.ndarray, noise: np.ndarray, lr: float) -> float:
    """One step downhill for P pairs, in place; returns their summed loss. centres and neighbours (P,), noise (P, N)."""
    width = vectors.centre.shape[1]
    loss, for_centre, for_near, for_noise = negative_sampling(
        vectors.centre[centres], vectors.near[neighbours], vectors.near[noise]
    )
    ids = np.concatenate([neighbours, noise.reshape(-1)])  # (P + P N,)
    rows = np.concatenate([for_near, for_noise.reshape(-1, width)])  # (P + P N, D)
    # A word may occur in many pairs: table[ids] -= rows would keep only the last of its gradients.
    for table, (different, sums) in (
        (vectors.centre, sum_by_id(for_centre, centres)),
        (vectors.near, sum_by_id(rows, ids)),
    ):
        table[different] -= lr * sums
    return loss


def epoch_pairs(
    sentences: Sequence[np.ndarray], keep: np.ndarray, window: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one reading of the text, in random order, after passing over some of the frequent words."""
    pairs = []
    for sentence in sentences:
        kept = sentence[rng.random(len(sentence)) < keep[sentence]]
        pairs.append(skip_gram_pairs(kept, window, rng))
    centres = np.concatenate([centre for centre, _ in pairs])  # (P,)
    neighbours = np.concatenate([near for _, near in pairs])  # (P,)
    order = rng.permutation(len(centres))
    return centres[order], neighbours[order]


def train_word2vec(
    sentences: Sequence[Sequence[str]],
    config: Word2VecConfig | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> WordVectors:
    """Train word vectors on sentences, which are lists of words; callback(epoch, mean loss of a pair) after each epoch.

    The learning rate falls in a straight line to a twentieth. The centre vectors start small and random, the
    neighbours' at 0, as in the authors' program. CourseError when no sentence has two words.
    """
    config = config or Word2VecConfig()
    words, counts = count_vocabulary(sentences, config.min_count)
    ids = {word: place for place, word in enumerate(words)}
    texts = [np.array([ids[word] for word in sentence if word in ids], dtype=np.int64) for sentence in sentences]
    if max(map(len, texts)) < 2:
        raise CourseError("no sentence has two words: there are no neighbours to learn from")
    rng = np.random.default_rng(config.seed)
    start = (rng.random((len(words), config.width), dtype=np.float32) - 0.5) / config.width
    vectors = WordVectors(words, start, np.zeros_like(start))
    keep, ends = keep_probabilities(counts, config.threshold), noise_ends(counts)
    for epoch in range(config.epochs):
        centres, neighbours = epoch_pairs(texts, keep, config.window, rng)
        total = 0.0
        for first in range(0, len(centres), config.pairs):
            done = (epoch + first / len(centres)) / config.epochs
            lr = config.learning_rate * max(0.05, 1 - done)
            batch = slice(first, first + config.pairs)
            noise = draw_noise(ends, (len(centres[batch]), config.noise_words), rng)  # (P, N)
            total += update(vectors, centres[batch], neighbours[batch], noise, lr)
        if callback is not None:
            callback(epoch, total / max(1, len(centres)))
    return vectors


def unit_rows(table: np.ndarray) -> np.ndarray:
    """Every row scaled to length 1, so that a dot product is a cosine; a row of zeros stays as it is."""
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(lengths > 0, lengths, 1)


def nearest(
    vectors: WordVectors, point: np.ndarray, n: int = 5, without: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """The n words whose centre vectors have the largest cosine with a point (D,), and those cosines."""
    cosines = unit_rows(vectors.centre) @ (point / max(float(np.linalg.norm(point)), 1e-12))  # (V,)
    passed_over = {vectors.id_of(word) for word in without}
    best = [place for place in np.argsort(-cosines, kind="stable").tolist() if place not in passed_over]
    return [(vectors.words[place], float(cosines[place])) for place in best[:n]]


def nearest_to(vectors: WordVectors, word: str, n: int = 5) -> list[tuple[str, float]]:
    """The n words most similar to a word, which is left out itself."""
    return nearest(vectors, vectors.centre[vectors.id_of(word)], n, [word])


def analogy(vectors: WordVectors, a: str, b: str, c: str, n: int = 5) -> list[tuple[str, float]]:
    """What is to c as b is to a: the words nearest to b - a + c, the three left out.

    The vectors are scaled to length 1 first. Source: Mikolov, Yih and Zweig (2013), "Linguistic Regularities in
    Continuous Space Word Representations", section 4.
    """
    rows = unit_rows(vectors.centre)
    point = rows[vectors.id_of(b)] - rows[vectors.id_of(a)] + rows[vectors.id_of(c)]  # (D,)
    return nearest(vectors, point, n, [a, b, c])
