"""Word vectors without a library: gradients, pairs, noise, and what training finds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bare import word2vec as w
from shared.errors import CourseError

FEW = settings(max_examples=20, deadline=None)


@FEW
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9))
def test_gradients_equal_pytorch_and_finite_differences(pairs, n_noise, width, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape) for shape in ((pairs, width), (pairs, width), (pairs, n_noise, width))]
    loss, *gradients = w.negative_sampling(*arrays)
    centre, near, noise = peers = [torch.tensor(array, requires_grad=True) for array in arrays]
    right = F.logsigmoid((centre * near).sum(-1)).sum()
    wrong = F.logsigmoid(-(noise @ centre[:, :, None]).squeeze(-1)).sum()
    expected = -(right + wrong)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    for gradient, peer in zip(gradients, peers, strict=True):
        np.testing.assert_allclose(gradient, peer.grad.numpy(), rtol=1e-10, atol=1e-10)
    place = tuple(0 for _ in gradients[2].shape)
    for array, gradient in zip(arrays, gradients, strict=True):
        place = (0,) * array.ndim
        for sign in (1, -1):
            array[place] += sign * 1e-5
            above = w.negative_sampling(*arrays)[0]
            array[place] -= 2 * sign * 1e-5
            below = w.negative_sampling(*arrays)[0]
            array[place] += sign * 1e-5
            assert (above - below) / (2e-5 * sign) == pytest.approx(gradient[place], abs=1e-6)


def test_huge_scores_give_a_finite_loss():
    big = np.full((1, 2), 1e3)
    with np.errstate(all="raise", under="ignore"):
        loss, *gradients = w.negative_sampling(big, -big, big[:, None])
    assert loss == pytest.approx(4e6) and all(np.isfinite(gradient).all() for gradient in gradients)


@FEW
@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 99))
def test_pairs_equal_two_loops(tokens, window, seed):
    sentence = np.random.default_rng(seed).integers(0, 50, tokens)
    reach = np.random.default_rng([seed, 1]).integers(1, window + 1, tokens)
    centres, near = w.skip_gram_pairs(sentence, window, np.random.default_rng([seed, 1]))
    expected = [
        (sentence[i], sentence[j]) for i in range(tokens) for j in range(tokens) if i != j and abs(i - j) <= reach[i]
    ]
    assert list(zip(centres, near, strict=True)) == expected


def test_near_words_are_paired_more_often():
    sentence = np.arange(20_000)
    centres, near = w.skip_gram_pairs(sentence, 4, np.random.default_rng(0))
    shares = np.bincount(np.abs(centres - near), minlength=5)[1:] / (2 * len(sentence))
    np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.25], atol=0.02)


def test_noise_follows_the_counts_to_the_power_of_three_quarters():
    counts = np.array([1000, 100, 10, 1])
    drawn = w.draw_noise(w.noise_ends(counts), (200, 500), np.random.default_rng(0))
    expected = counts**0.75 / (counts**0.75).sum()
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=4) / drawn.size, expected, atol=0.005)


def test_frequent_words_are_passed_over():
    counts = np.array([900, 99, 1])
    np.testing.assert_allclose(w.keep_probabilities(counts, 0.01), [(0.01 / 0.9) ** 0.5, (0.01 / 0.099) ** 0.5, 1])


def test_vocabulary_is_sorted_by_count():
    words, counts = w.count_vocabulary([["b", "a", "b"], ["c", "a", "b"]], min_count=2)
    assert words == ["b", "a"] and counts.tolist() == [3, 2]


def test_an_update_adds_up_the_gradients_of_equal_words():
    rng = np.random.default_rng(0)
    vectors = w.WordVectors(list("abcde"), rng.normal(size=(5, 3)), rng.normal(size=(5, 3)))
    centres, neighbours = np.array([1, 1, 2, 1]), np.array([0, 3, 0, 0])
    noise = np.array([[0, 0], [4, 0], [2, 2], [1, 3]])
    tables = [torch.tensor(table, requires_grad=True) for table in (vectors.centre, vectors.near)]
    c, n = tables
    right = F.logsigmoid((c[centres] * n[neighbours]).sum(-1)).sum()
    wrong = F.logsigmoid(-(n[noise] @ c[centres][:, :, None]).squeeze(-1)).sum()
    (-(right + wrong)).backward()
    expected = [table.detach() - 0.1 * table.grad for table in tables]
    w.update(vectors, centres, neighbours, noise, 0.1)
    np.testing.assert_allclose(vectors.centre, expected[0], atol=1e-12)
    np.testing.assert_allclose(vectors.near, expected[1], atol=1e-12)


def animals_and_food(n=1500):
    """Sentences in which animals run and food is eaten, young ones and old ones by turns."""
    rng = np.random.default_rng(0)
    subjects = {"fox": "run", "hen": "run", "dog": "run", "pie": "eat", "nut": "eat", "fig": "eat"}
    near = {"run": ["runs", "barks", "sleeps", "wakes"], "eat": ["baked", "tasty", "sweet", "served"]}
    sentences = []
    for _ in range(n):
        word = list(subjects)[rng.integers(6)]
        sentences.append(["the", word, *rng.permutation(near[subjects[word]])[:3]])
    return sentences


def test_words_with_the_same_neighbours_end_up_together_and_losses_fall():
    losses = []
    config = w.Word2VecConfig(width=12, epochs=6, threshold=1.0, pairs=64, seed=0)
    vectors = w.train_word2vec(animals_and_food(), config, lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.92 * losses[0]
    for group in (["fox", "hen", "dog"], ["pie", "nut", "fig"]):
        for word in group:
            assert {name for name, _ in w.nearest_to(vectors, word, 2)} == set(group) - {word}
    again = w.train_word2vec(animals_and_food(), config)
    assert np.array_equal(again.centre, vectors.centre)
    assert vectors.centre.dtype == vectors.near.dtype == np.float32


def test_nearest_and_analogy_on_vectors_made_by_hand():
    centre = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 2], [0, 2, 2], [-1, 0, 0.1]], dtype=np.float32)
    vectors = w.WordVectors(["man", "king", "woman", "queen", "stone"], centre, centre)
    assert w.nearest_to(vectors, "man", 1) == [("king", pytest.approx(0.5**0.5, abs=1e-6))]
    assert w.analogy(vectors, "man", "king", "woman", 1)[0][0] == "queen"
    assert len(w.nearest(vectors, np.zeros(3), 9)) == 5  # no direction at all, but no error either


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: w.train_word2vec([]), "no word occurs"),
        (lambda: w.train_word2vec([["a"], ["b"]]), "no sentence has two words"),
        (lambda: w.count_vocabulary([["a"]], 2), "no word occurs 2 times"),
        (lambda: w.WordVectors(["a"], np.ones((1, 2)), np.ones((1, 2))).id_of("b"), "'b' is not among the 1 words"),
    ],
)
def test_mistakes_get_one_clear_line(mistake, message):
    with pytest.raises(CourseError, match=message):
        mistake()
