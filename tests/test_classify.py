"""shared/tuning/classify.py: filler changes nothing, the right position is read, only what should learn does."""

import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.model.modern import ModernConfig, ModernGPT
from shared.training.train import TrainConfig, train
from shared.tuning.classify import (
    ClassificationData,
    Classifier,
    class_scores,
    classification_loss,
    confusion_matrix,
    expected_calibration_error,
    hidden_states,
    last_real,
    mean_real,
    pad_right,
    reliability,
    stratified_split,
    train_top,
)

SIZES = {"vocab_size": 37, "context": 14, "n_layers": 3, "n_heads": 2, "width": 16}
DOCUMENTS = [[5, 9, 1], [7], [3, 3, 8, 30, 2, 11, 4], [12, 6]]


@pytest.fixture(params=["gpt", "modern", "capped"])
def model(request):
    torch.manual_seed(0)
    if request.param == "gpt":
        model = GPT(GPTConfig(**SIZES))
    else:
        model = ModernGPT(ModernConfig(**SIZES, softcap=3.0 if request.param == "capped" else None))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def awake(model, pool=last_real):
    """A classifier whose head is not zero, so that its scores say something about what it read."""
    classifier = Classifier(model, 5, pool).eval()
    nn.init.normal_(classifier.head.weight)
    return classifier


@pytest.mark.parametrize("pool", [last_real, mean_real])
@torch.no_grad()
def test_padding_changes_nothing(model, pool):
    classifier = awake(model, pool)
    ids, lengths = pad_right(DOCUMENTS)
    together = classifier(ids, lengths)
    for row, document in enumerate(DOCUMENTS):
        alone = classifier(torch.tensor([document]), torch.tensor([len(document)]))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
    wider = torch.cat([ids, torch.full((len(ids), 3), 36)], dim=1)
    wider = torch.where(torch.arange(wider.shape[1]) < lengths[:, None], wider, 36)  # another filler, and more of it
    torch.testing.assert_close(classifier(wider, lengths), together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(class_scores(classifier, DOCUMENTS, batch_size=3), together, atol=1e-5, rtol=1e-5)


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padded_rows_hold_their_documents(documents):
    ids, lengths = pad_right(documents)
    assert ids.shape == (len(documents), max(map(len, documents)))
    assert [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] == documents


@pytest.mark.parametrize("documents", [[], [[1, 2], []]])
def test_an_empty_text_is_refused(documents):
    with pytest.raises(CourseError, match="no last token"):
        pad_right(documents)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 6))
def test_pooling_against_a_loop(lengths, width):
    hidden = torch.randn(len(lengths), 8, width)
    hidden = hidden.masked_fill((torch.arange(8) >= torch.tensor(lengths)[:, None])[..., None], float("nan"))
    last, mean = last_real(hidden, torch.tensor(lengths)), mean_real(hidden, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(last[row], hidden[row, length - 1])
        torch.testing.assert_close(mean[row], hidden[row, :length].mean(dim=0), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_states_are_what_the_output_layer_reads(model):
    ids, _ = pad_right(DOCUMENTS)
    before = copy.deepcopy(model.state_dict())
    hidden = hidden_states(model, ids)
    table = model.token_embedding.weight if isinstance(model, GPT) else model.head.weight
    logits, cap = hidden @ table.T, getattr(model.config, "softcap", None)
    torch.testing.assert_close(cap * torch.tanh(logits / cap) if cap else logits, model(ids), atol=1e-5, rtol=1e-5)
    assert not model.final_norm._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CourseError):
        hidden_states(model, torch.zeros(1, 15, dtype=torch.int64))
    assert not model.final_norm._forward_hooks  # not even a refused input leaves a hook behind


def one_step(classifier, steps=2):
    data = ClassificationData(DOCUMENTS, [0, 1, 2, 4], batch_size=4)
    config = TrainConfig(steps=steps, batch_size=4, learning_rate=0.05, warmup=0, decay=0, precision="fp32")
    return train(classifier, data, config, loss=classification_loss)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_only_the_top_learns(model, blocks):
    classifier = Classifier(model, 5)
    train_top(classifier, blocks)
    before = copy.deepcopy(classifier.state_dict())
    one_step(classifier)
    changed = {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}
    tops = tuple(f"model.blocks.{number}." for number in range(3 - blocks, 3))
    assert {"head.weight", "head.bias"} <= changed
    assert all(name.startswith((*tops, "head.")) for name in changed)
    assert all(any(name.startswith(top) for name in changed) for top in tops)


def test_too_many_blocks_are_refused(model):
    with pytest.raises(CourseError, match="4 blocks"):
        train_top(Classifier(model, 5), 4)


def test_no_gradient_comes_from_the_filler(model):
    classifier = awake(model)
    batch = (*pad_right([[5, 9, 1], [7, 2, 2, 2, 2]]), torch.tensor([0, 1]))
    batch[0][0, 3:] = 33  # an id that no text holds
    classification_loss(classifier, batch)[0].backward()
    if isinstance(model, ModernGPT):  # GPT reuses the table as output layer; its logits are thrown away all the same
        assert model.head.weight.grad is None
    assert not model.token_embedding.weight.grad[33].any()
    assert model.token_embedding.weight.grad[9].any()


def test_the_loss_starts_at_the_logarithm_of_the_number_of_classes(model):
    assert math.isclose(one_step(Classifier(model, 5), steps=1)[0]["loss"], math.log(5), rel_tol=1e-6)


def test_a_toy_task_is_learnt(model):
    """Class 1: the last token is even. The tokens before it, and the filler behind it, say nothing."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 11, size=draw.integers(1, 9)).tolist() for _ in range(160)]
    labels = [1 - document[-1] % 2 for document in documents]
    classifier = Classifier(model, 2)
    data = ClassificationData(documents[:120], labels[:120], batch_size=24)
    assert data(3)[0].equal(data(3)[0]) and len(data) == 120
    config = TrainConfig(steps=60, batch_size=24, optimizer="adamw", learning_rate=0.01, warmup=5, precision="fp32")
    train(classifier, data, config, loss=classification_loss)
    guesses = class_scores(classifier, documents[120:]).argmax(dim=1)
    assert (guesses == torch.tensor(labels[120:])).float().mean() > 0.9


def test_labels_have_to_match():
    with pytest.raises(CourseError, match="one label for each"):
        ClassificationData(DOCUMENTS, [0, 1])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=90), st.integers(0, 5))
def test_a_stratified_split_keeps_proportions(labels, seed):
    shares = (0.6, 0.3, 0.1)
    parts = stratified_split(labels, shares, seed)
    assert sorted(number for part in parts for number in part) == list(range(len(labels)))
    for label in set(labels):
        for share, part in zip(shares, parts, strict=True):
            assert abs(sum(labels[number] == label for number in part) - share * labels.count(label)) <= 1
    assert parts == stratified_split(labels, shares, seed)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(CourseError, match="add up"):
        stratified_split([0, 1], (0.5, 0.4), seed=0)


def test_confusion_counts_the_truth_in_rows():
    assert confusion_matrix([0, 0, 1, 2], [1, 1, 1, 0], 3).tolist() == [[0, 2, 0], [0, 1, 0], [1, 0, 0]]


def test_calibration_of_made_up_answers():
    probabilities = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.65, 0.35]])
    labels = torch.tensor([0, 1, 1, 0])
    share, confidence, accuracy = reliability(probabilities, labels).T
    assert np.allclose(share, [0.5, 0.5]) and np.allclose(confidence, [0.65, 0.95]) and np.allclose(accuracy, [1, 0.5])
    assert math.isclose(expected_calibration_error(probabilities, labels), 0.5 * 0.35 + 0.5 * 0.45, abs_tol=1e-6)


def test_a_classifier_that_knows_its_odds_is_calibrated():
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(2 * torch.randn(20_000, 4, generator=draw), dim=-1)
    labels = torch.multinomial(probabilities, 1, generator=draw)[:, 0]
    assert expected_calibration_error(probabilities, labels) < 0.02
    assert expected_calibration_error(torch.softmax(3 * probabilities.log(), dim=-1), labels) > 0.1


def test_the_sms_collection_is_cut_in_proportion_and_without_doubles():
    folder = os.environ.get("COURSE_DATA")
    if not folder or not (Path(folder) / "sms-spam.tsv").is_file():
        pytest.skip("COURSE_DATA is not set, or holds no sms-spam.tsv")
    lines = dict.fromkeys((Path(folder) / "sms-spam.tsv").read_text(encoding="utf-8").splitlines())
    labels = [int(line.startswith("spam\t")) for line in lines]
    parts = stratified_split(labels, (0.7, 0.15, 0.15), seed=0)
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(labels) < 5300
    shares = [np.mean([labels[number] for number in part]) for part in parts]
    assert min(shares) > 0.1 and max(shares) - min(shares) < 0.002
