"""Losses against PyTorch, whole documents against a plain loop, the baselines against sources with known entropy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shared.errors import CourseError
from shared.model.modern import ModernConfig, ModernGPT
from shared.text.loader import IGNORE_INDEX
from shared.training.evaluate import (
    NgramModel,
    bits_per_byte,
    count_ngrams,
    cross_entropy,
    document_loss,
    document_nats,
    entropy_floor,
    gzip_bits_per_byte,
    ngram_contexts,
    perplexity,
    xz_bits_per_byte,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ModernGPT(ModernConfig(vocab_size=23, context=13, n_layers=2, n_heads=2, width=12))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_equal_torch(reduction, dtype):
    torch.manual_seed(0)
    targets = torch.randint(0, 7, (2, 5))
    targets[0, 1] = targets[1, 4] = IGNORE_INDEX
    ours = (5 * torch.randn(2, 5, 7)).to(dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = cross_entropy(ours, targets, reduction)
    expected = F.cross_entropy(theirs.float().view(10, 7), targets.view(10), reduction=reduction)
    torch.testing.assert_close(loss, expected.view(loss.shape))
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cross_entropy_survives_probabilities_that_underflow():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    assert cross_entropy(logits, torch.tensor([2])).item() == 2e4
    assert cross_entropy(logits, torch.tensor([0])).item() == 0


def test_cross_entropy_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="median"):
        cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), "median")


def random_documents(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 23, length).tolist() for length in lengths]


def loop_loss(model, document, mask=None):
    """One document alone, one token after the other; the context restarts at every 13th target."""
    total, count = 0.0, 0
    for position in range(1, len(document)):
        if mask is None or mask[position]:
            start = (position - 1) // 13 * 13
            with torch.no_grad():
                logits = model(torch.tensor([document[start:position]]))[0, -1]
            total -= torch.log_softmax(logits, -1)[document[position]].item()
            count += 1
    return total, count


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("masked", [False, True])
def test_document_nats_equal_a_plain_loop(model, batch_tokens, masked):
    documents = random_documents([5, 2, 14, 15, 1, 40, 9])
    rng = np.random.default_rng(1)
    masks = [(rng.random(len(document)) < 0.5).tolist() for document in documents] if masked else None
    nats, counts = document_nats(model, documents, masks, batch_tokens=batch_tokens, precision="fp32")
    expected = [loop_loss(model, d, masks[i] if masks else None) for i, d in enumerate(documents)]
    np.testing.assert_allclose(nats, [total for total, _ in expected], rtol=1e-4, atol=1e-6)
    assert counts.tolist() == [count for _, count in expected]
    loss = document_loss(model, documents, masks, precision="fp32")
    assert loss == pytest.approx(sum(nats) / sum(counts), rel=1e-5)


def test_document_loss_leaves_the_mode_and_makes_no_gradient(model):
    model.train()
    document_loss(model, random_documents([5]))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    document_loss(model, random_documents([5]))
    assert not model.training


def test_an_untrained_model_with_a_zero_head_is_as_unsure_as_a_die():
    die = ModernGPT(ModernConfig(vocab_size=23, context=13, n_layers=1, n_heads=1, width=12))
    torch.nn.init.zeros_(die.head.weight)
    loss = document_loss(die, random_documents([7, 30]))
    assert loss == pytest.approx(math.log(23), rel=1e-6)
    assert perplexity(loss) == pytest.approx(23, rel=1e-5)


def test_documents_without_a_target_are_refused(model):
    with pytest.raises(CourseError, match="at least two tokens"):
        document_loss(model, [[3], []])


def test_units():
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
    # two texts: one fair coin flip each 1 and 3 tokens long
    assert entropy_floor([math.log(0.5), math.log(0.5)], [1, 3]) == pytest.approx(math.log(2) / 2)


def markov_documents(n, seed, states=6):
    """Documents from a chain whose entropy is known: state 0 starts and ends each of them."""
    chain = np.random.default_rng(0).dirichlet(np.full(states, 0.3), size=states) * 0.9 + 0.1 / states
    rng = np.random.default_rng(seed)
    documents, log_probabilities = [], []
    for _ in range(n):
        document, log_p = [0], 0.0
        while len(document) == 1 or document[-1] != 0:
            following = int(rng.choice(states, p=chain[document[-1]]))
            log_p += math.log(chain[document[-1], following])
            document.append(following)
        documents.append(document)
        log_probabilities.append(log_p)
    return documents, log_probabilities


def test_ngram_contexts_by_hand():
    contexts, tokens = ngram_contexts([[7, 1, 2], [7, 3]], base=10, order=3)
    assert tokens.tolist() == [1, 2, 3]
    assert contexts[0].tolist() == [0, 0, 0]
    assert contexts[1].tolist() == [7, 1, 7]
    assert contexts[2].tolist() == [97, 71, 97]  # 9 is the padding before a document


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngram_probabilities_sum_to_one_after_any_context(order):
    documents, _ = markov_documents(60, seed=1)
    documents = [document for document in documents if 5 not in document]  # so that 5 is never seen
    model = NgramModel.fit(documents, 6, order)
    for context in ([0], [0, 2, 2], [5, 5], [1, 5], [5, 1]):
        contexts, tokens = ngram_contexts([[*context, token] for token in range(6)], 7, order)
        last = np.arange(len(context) - 1, len(tokens), len(context))
        p = model.probabilities([c[last] for c in contexts], tokens[last])
        assert p.sum() == pytest.approx(1) and (p > 0).all()


def test_a_bigram_model_comes_close_to_the_entropy_of_a_markov_chain():
    documents, _ = markov_documents(3000, seed=2)
    unseen, log_probabilities = markov_documents(1000, seed=3)
    floor = entropy_floor(log_probabilities, [len(document) - 1 for document in unseen])
    losses = [NgramModel.fit(documents, 6, order).loss(unseen) for order in (1, 2, 3)]
    assert floor < losses[1] < 1.01 * floor
    assert losses[2] < 1.02 * floor
    assert losses[0] > 1.1 * floor


def test_ngram_samples_follow_the_probabilities():
    documents, _ = markov_documents(500, seed=4)
    model = NgramModel.fit(documents, 6, order=3)
    drawn = [model.sample(start=0, stop=0, max_tokens=40, seed=seed) for seed in range(3000)]
    assert all(d[0] == 0 and (d[-1] == 0 or len(d) == 40) and 0 not in d[1:-1] for d in drawn)
    first = np.bincount([d[1] for d in drawn], minlength=6) / len(drawn)
    contexts, tokens = ngram_contexts([[0, token] for token in range(6)], 7, 3)
    np.testing.assert_allclose(first, model.probabilities(contexts, tokens), atol=0.03)
    assert model.sample(0, 0, 40, seed=5) == model.sample(0, 0, 40, seed=5)


def test_a_text_whose_every_context_is_unique_is_drawn_word_for_word():
    document = [0, 3, 1, 4, 2, 5, 0]
    contexts, tokens = ngram_contexts([document], 7, order=2)
    counts = [count_ngrams(context, tokens, 7) for context in contexts]
    always = np.ones(64)
    model = NgramModel(6, counts, [always, always])
    assert all(model.sample(0, 0, 40, seed) == document for seed in range(20))


def test_ngram_counts_that_would_overflow_are_refused():
    with pytest.raises(CourseError, match="lower order"):
        NgramModel.fit([[1, 2]], 2**16, order=4)


def test_compressors():
    text = "the cat sat on the mat, " * 200
    noise = "".join(chr(c) for c in np.random.default_rng(0).integers(32, 127, 5000))
    assert gzip_bits_per_byte(text) < 0.3 < 6 < gzip_bits_per_byte(noise) < 8
    assert xz_bits_per_byte(noise) > 6
    assert xz_bits_per_byte(noise, seen=noise) < 0.3  # it remembers what it has seen


def test_what_was_never_counted_is_unlikely_and_not_impossible():
    """Every held-out continuation of these documents is one that was counted; in the last text none is."""
    always_the_same = [list(range(300))] * 9
    for order in (2, 3):
        model = NgramModel.fit(always_the_same, vocab_size=301, order=order)
        assert math.log(301) < model.loss([[0, 1, 3, 2]]) < 20
        assert model.loss(always_the_same) < 0.05
