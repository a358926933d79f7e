"""The GPT in NumPy beside ours in PyTorch: loss, every gradient, fifty steps, text, and the file it is saved in."""

import os
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shared.app.bare import from_torch, to_torch
from shared.bare import gpt as bare_gpt
from shared.bare.gpt import BareConfig, BareGPT, generate, load_bare, save_bare
from shared.bare.nn import IGNORE_INDEX, cross_entropy
from shared.bare.optim import AdamW, clip_gradients, learning_rate_at
from shared.bare.tensor import backward, no_grad
from shared.bare.train import BareTrainConfig, document_loss, get_batch, lay_in_rows, ngram_loss, read_rows, train
from shared.corpora import load_corpus
from shared.errors import CourseError
from shared.model import generate as peer_generate
from shared.model.gpt import GPT, GPTConfig
from shared.text.bpe import BPETokenizer
from shared.text.embeddings import sinusoidal_positions
from shared.text.loader import rows_of_step
from shared.text.template import SPECIAL_TOKENS, render_story
from shared.training import optim as peer_optim
from shared.training.evaluate import NgramModel
from shared.training.evaluate import document_loss as peer_document_loss

CONFIG = BareConfig(vocab_size=37, context=11, n_layers=3, n_heads=2, width=8)


def pair(dtype=np.float64, **changes):
    """A GPT in NumPy with weights of a trained model's size, and the same in PyTorch."""
    model = BareGPT(BareConfig(**{**vars(CONFIG), **changes}), seed=3, dtype=dtype)
    rng = np.random.default_rng(5)
    for tensor in model.parameters().values():  # biases and gains too, so that an error in one would show
        tensor.data += rng.normal(0, 0.2, tensor.shape).astype(dtype)
    return model, to_torch(model)


def random_batch(seed=0, batch=5, tokens=11):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, 37, (2, batch, tokens))
    targets[rng.random(targets.shape) < 0.2] = IGNORE_INDEX
    return inputs, targets


def peer_loss(model, inputs, targets):
    return F.cross_entropy(model(torch.from_numpy(inputs)).flatten(0, 1), torch.from_numpy(targets).flatten())


# ---- the model


def test_names_and_shapes_are_those_of_pytorch():
    model = BareGPT(CONFIG)
    peer = GPT(GPTConfig(37, 11, 3, 2, 8))
    assert {name: tensor.shape for name, tensor in model.parameters().items()} == {
        name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()
    }


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_loss_and_every_gradient_equal_pytorch(positions):
    model, peer = pair(positions=positions)
    inputs, targets = random_batch()
    loss = cross_entropy(model(inputs), targets)
    expected = peer_loss(peer, inputs, targets)
    backward(loss)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)
    gradients = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    if positions == "sinusoidal":
        del gradients["position_embedding.weight"]  # learned over there only
    assert gradients.keys() == model.parameters().keys()
    for name, tensor in model.parameters().items():
        np.testing.assert_allclose(tensor.grad, gradients[name], rtol=1e-8, atol=1e-8, err_msg=name)


def test_fifty_steps_stay_together_with_pytorch():
    """AdamW with its decay, clipping and the schedule: every loss and, at the end, every weight."""
    model, peer = pair()
    ours = AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    groups = peer_optim.parameter_groups(peer)
    theirs = peer_optim.AdamW(
        [
            {"params": groups[name], "weight_decay": 0.1 if name == "matrices" else 0.0}
            for name in groups
            if groups[name]
        ],
        betas=(0.9, 0.95),
    )
    for step in range(50):
        inputs, targets = random_batch(seed=step)
        loss, expected = cross_entropy(model(inputs), targets), peer_loss(peer, inputs, targets)
        assert abs(loss.item() - expected.item()) < 1e-6, step
        backward(loss)
        expected.backward()
        norm = clip_gradients(model.parameters().values(), 0.5)
        assert norm == pytest.approx(peer_optim.clip_gradients(peer.parameters(), 0.5).item(), abs=1e-6)
        ours.lr = learning_rate_at(step, peak=3e-3, steps=50, warmup=5)
        for group in theirs.param_groups:
            group["lr"] = 3e-3 * peer_optim.warmup_cosine(step, 50, 5)
        ours.step()
        theirs.step()
        theirs.zero_grad()
    for name, parameter in peer.named_parameters():
        np.testing.assert_allclose(model.parameters()[name].data, parameter.detach().numpy(), atol=1e-6, err_msg=name)


def test_initial_weights_have_the_published_sizes():
    model = BareGPT(BareConfig(500, 60, 4, 4, 64), seed=0)
    weights = model.parameters()
    for name, std in (("token_embedding.weight", 0.02), ("blocks.1.attention.out.weight", 0.02 / 8**0.5)):
        assert weights[name].data.std() == pytest.approx(std, rel=0.05)
    assert all(not tensor.data.any() for name, tensor in weights.items() if name.endswith("bias"))
    assert all(
        (tensor.data == 1).all() for name, tensor in weights.items() if name.endswith(("norm1.weight", "norm.weight"))
    )
    other = BareGPT(BareConfig(500, 60, 4, 4, 64), seed=1)
    assert not np.array_equal(weights["token_embedding.weight"].data, other.parameters()["token_embedding.weight"].data)


def test_sinusoidal_positions_equal_the_pytorch_table():
    np.testing.assert_allclose(bare_gpt.sinusoidal_positions(9, 6), sinusoidal_positions(9, 6).numpy(), atol=1e-6)


def test_no_token_sees_the_future():
    model, _ = pair()
    inputs, _ = random_batch()
    changed = inputs.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 37
    with no_grad():
        one, other = model(inputs).data, model(changed).data
    assert np.array_equal(one[:, :7], other[:, :7]) and not np.allclose(one[:, 7:], other[:, 7:])


def test_dropout_acts_in_training_only_and_is_drawn_from_the_generator():
    model = BareGPT(BareConfig(37, 11, 2, 2, 8, dropout=0.5), seed=0)
    inputs, _ = random_batch()

    def logits(seed):
        return model(inputs, rng=None if seed is None else np.random.default_rng(seed)).data

    assert np.array_equal(logits(None), logits(None)) and np.array_equal(logits(1), logits(1))
    assert not np.allclose(logits(1), logits(None)) and not np.allclose(logits(1), logits(2))


# ---- writing


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_cached_text_equals_uncached_beyond_the_context(positions, n_rows):
    model, _ = pair(positions=positions)
    prompt = random_batch(batch=n_rows, tokens=4)[0]
    for settings in ({"temperature": 0}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9}):
        texts = [generate(model, prompt, 30, seed=2, use_cache=cached, **settings) for cached in (True, False)]
        assert np.array_equal(*texts) and texts[0].shape == (n_rows, 34)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_model_trained_in_one_writes_the_same_text_in_the_other(positions):
    documents = [[0, *range(1 + start, 9 + start), 0] for start in range(6)]
    model = BareGPT(BareConfig(37, 11, 1, 2, 8, positions=positions), seed=0)
    train(model, lay_in_rows(documents, 11), BareTrainConfig(60, batch_size=4, learning_rate=1e-2, warmup=2, decay=10))
    peer = to_torch(model).eval()
    prompt = np.array([[0, 3], [0, 5]])
    for settings in ({"temperature": 0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "top_k": 5}):
        ours = generate(model, prompt, 25, seed=4, **settings)
        theirs = peer_generate.generate(peer, torch.from_numpy(prompt), 25, seed=4, **settings)
        assert ours.tolist() == theirs.tolist()
    back = from_torch(peer)
    assert generate(back, prompt, 25, temperature=0).tolist() == generate(model, prompt, 25, temperature=0).tolist()


def test_a_pytorch_model_writes_the_same_text_in_numpy():
    torch.manual_seed(0)
    peer = GPT(GPTConfig(37, 11, 2, 2, 8)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    prompt = np.array([[4, 2, 7]])
    ours = generate(from_torch(peer), prompt, 30, temperature=0)
    assert ours.tolist() == peer_generate.generate(peer, torch.from_numpy(prompt), 30, temperature=0).tolist()


def test_filters_equal_pytorch():
    logits = np.random.default_rng(0).normal(size=(4, 9))
    logits[0, 3] = logits[0, 5]  # a tie
    for k in (1, 3, 8, 20):
        assert np.array_equal(bare_gpt.top_k_filter(logits, k), peer_generate.top_k_filter(torch.from_numpy(logits), k))
    for p in (0.01, 0.5, 0.95):
        assert np.array_equal(bare_gpt.top_p_filter(logits, p), peer_generate.top_p_filter(torch.from_numpy(logits), p))


def test_samples_follow_the_probabilities():
    logits = np.log(np.array([0.1, 0.0001, 0.6, 0.2999]))
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    drawn = bare_gpt.sample(np.tile(logits, (20_000, 1)), uniforms)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, np.exp(logits), atol=1e-4)


def test_a_row_that_stops_repeats_its_stop_token_and_all_stopped_is_the_end():
    model, _ = pair()
    prompt = random_batch(batch=4, tokens=2)[0]
    free = generate(model, prompt, 20, temperature=0)
    stop = int(free[0, 5])
    stopped = generate(model, prompt, 20, temperature=0, stop_tokens=[stop])
    for row, unstopped in zip(stopped[:, 2:], free[:, 2:], strict=True):
        at = list(unstopped).index(stop) if stop in unstopped else len(unstopped)
        assert row[: at + 1].tolist() == unstopped[: at + 1][: len(row)].tolist()
        assert (row[at:] == stop).all()
    assert generate(model, prompt[:1], 20, temperature=0, stop_tokens=[stop]).shape[1] <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[]], 5), "at least one token"),
        (([[1] * 12], 5), "12 tokens, the model's context 11"),
        (([[37]], 5), "outside 0 to 36"),
        (([[-1]], 5), "outside 0 to 36"),
        (([[0.5]], 5), "rows of ids"),
        (([[1]], -1), "max_new_tokens is -1"),
        (([[1]], 5, -0.1), "temperature -0.1"),
        (([[1]], 5, 1.0, 0), "top_k 0"),
        (([[1]], 5, 1.0, None, 1.5), "top_p 1.5"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments, message):
    with pytest.raises(CourseError, match=message):
        generate(BareGPT(CONFIG), *arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "3 equal heads"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"positions": "rotary"}, "'rotary' is unknown"),
        ({"positions": "sinusoidal", "width": 9, "n_heads": 3}, "width 9 is odd"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(CourseError, match=message):
        BareConfig(**{**vars(CONFIG), **changes})


def test_too_many_tokens_are_refused():
    model = BareGPT(CONFIG)
    with pytest.raises(CourseError, match=r"0 \+ 12 tokens do not fit in a context of 11"):
        model(np.zeros((1, 12), np.int64))
    with pytest.raises(CourseError, match="batch of rows"):
        model(np.zeros(3, np.int64))
    with pytest.raises(CourseError, match="rows 0 to 36"):
        model(np.full((1, 2), 37))


# ---- batches, measures


def test_rows_hold_every_target_once_and_batches_are_those_of_the_seed():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 90, n).tolist() for n in (3, 8, 1, 2, 25, 5, 10, 11)]
    for share in (True, False):
        rows = lay_in_rows(documents, 9, share)
        inputs, targets = read_rows(rows, np.arange(len(rows)))
        pairs = [(int(a), int(b)) for a, b in zip(inputs.ravel(), targets.ravel(), strict=True) if b != IGNORE_INDEX]
        expected = [pair for document in documents for pair in pairwise(document)]
        assert pairs == expected  # in their order, none lost, none across two documents
    rows = lay_in_rows(documents, 9)
    for step in range(7):
        expected = rows_of_step(step, 4, len(rows), seed=5)
        ours, theirs = get_batch(rows, step, 4, seed=5), read_rows(rows, expected)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert ours[0].shape[1] == rows.used[expected].max() - 1
    with pytest.raises(CourseError, match="nothing to predict"):
        lay_in_rows([[1], []], 9)


def test_training_is_the_same_again_and_calls_back():
    documents = [[0, *range(1 + start, 9 + start), 0] for start in range(6)]
    config = BareTrainConfig(5, batch_size=4, warmup=2, decay=2, seed=3)
    steps, runs = [], []
    for _ in range(2):
        model = BareGPT(BareConfig(37, 11, 1, 2, 8, dropout=0.2), seed=0)
        runs.append(train(model, lay_in_rows(documents, 11), config, [lambda run: steps.append(run.step)]))
    assert runs[0] == runs[1] and steps == [1, 2, 3, 4, 5] * 2
    assert runs[0][-1]["loss"] < runs[0][0]["loss"]


def test_a_loss_that_is_no_number_stops_the_training():
    model = BareGPT(CONFIG)
    model.parameters()["blocks.0.norm1.weight"].data[:] = np.inf
    with pytest.raises(CourseError, match="step 1: lower the learning rate"), np.errstate(invalid="ignore"):
        train(model, lay_in_rows([[1, 2, 3]], 11), BareTrainConfig(2))


def test_document_loss_equals_pytorch():
    model, peer = pair(np.float32)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 37, n).tolist() for n in (3, 11, 12, 1, 30, 5)]
    expected = peer_document_loss(peer, documents, precision="fp32")
    assert document_loss(model, documents, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_counting_is_as_strong_a_baseline_as_in_pytorch():
    corpus = load_corpus("stories-small", stories=1000)
    tokenizer = BPETokenizer.train(corpus.train, 400, SPECIAL_TOKENS)
    train_ids, unseen = ([render_story(tokenizer, text) for text in texts] for texts in (corpus.train, corpus.val))
    for order in (1, 2, 3):
        expected = NgramModel.fit(train_ids, tokenizer.vocab_size, order).loss(unseen)
        assert ngram_loss(train_ids, unseen, tokenizer.vocab_size, order) == pytest.approx(expected, rel=0.01)


def test_counting_by_hand():
    """After 1 comes 2 twice and 3 once: p(2 | 1) = (2 + 2 p(2)) / (3 + 2), p(2) = (2 + 2/4) / (3 + 2)."""
    p_of_2 = (2 + 2 / 4) / 5
    expected = -np.log((2 + 2 * p_of_2) / 5)
    assert ngram_loss([[1, 2], [1, 2], [1, 3]], [[1, 2]], 4, order=2) == pytest.approx(expected)


# ---- the file


def test_a_saved_model_comes_back_as_it_was(tmp_path):
    for dtype, positions in ((np.float32, "learned"), (np.float64, "sinusoidal")):
        model, _ = pair(dtype, positions=positions)
        path = tmp_path / "folder" / "model.npz"
        save_bare(path, model, '{"ä": 1}')
        loaded, text = load_bare(path)
        assert text == '{"ä": 1}' and loaded.config == model.config
        for name, tensor in model.parameters().items():
            assert np.array_equal(loaded.parameters()[name].data, tensor.data)
            assert loaded.parameters()[name].dtype == dtype
        assert os.listdir(path.parent) == ["model.npz"]


def test_the_file_needs_no_pickle(tmp_path):
    save_bare(tmp_path / "m.npz", BareGPT(CONFIG), "{}")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype in (np.uint8, np.float32) for name in archive.files)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.npz"
    save_bare(path, BareGPT(CONFIG), "old")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CourseError, match=r"cannot write .*No space left"):
        save_bare(path, BareGPT(CONFIG, seed=1), "new")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.npz"]


def test_a_truncated_or_tampered_file_is_refused_or_harmless(tmp_path):
    """Wherever a byte is changed, the file is refused in one line or gives exactly the same model."""
    path = tmp_path / "m.npz"
    model = BareGPT(BareConfig(5, 3, 1, 1, 2))
    save_bare(path, model, "{}")
    whole = path.read_bytes()
    for size in [0, 1, 10, *range(50, len(whole), 997)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CourseError, match="train the model again") as error:
            load_bare(path)
        assert "\n" not in str(error.value)
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 300).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        try:
            loaded, text = load_bare(path)
        except CourseError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert text == "{}" and loaded.config == model.config
        for name, tensor in model.parameters().items():
            assert np.array_equal(loaded.parameters()[name].data, tensor.data)
    assert refused > 150


def replaced(text, old, new):
    assert old in text.tobytes()
    return np.frombuffer(text.tobytes().replace(old, new), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("weights/final_norm.bias"),
        lambda arrays: arrays.update({"weights/more": np.ones(3, np.float32)}),
        lambda arrays: arrays.update({"weights/final_norm.bias": np.full(8, np.nan, np.float32)}),
        lambda arrays: arrays.update({"weights/final_norm.bias": np.zeros(9, np.float32)}),
        lambda arrays: arrays.update({"weights/final_norm.bias": np.zeros(8)}),
        lambda arrays: arrays.update({"head": bare_gpt.text_to_array('{"format": "another"}')}),
        lambda arrays: arrays.update({"head": bare_gpt.text_to_array("[]")}),
        lambda arrays: arrays.update({"head": np.array(["{}"], dtype=object)}),
        lambda arrays: arrays.pop("tokenizer"),
        lambda arrays: arrays.update({"head": replaced(arrays["head"], b'"context": 11', b'"context": 2000000000')}),
        lambda arrays: arrays.update({"head": replaced(arrays["head"], b'"n_layers": 3', b'"n_layers": 30000000')}),
        lambda arrays: arrays.update({"head": replaced(arrays["head"], b'"width": 8', b'"width": 1000000000')}),
    ],
)
def test_a_file_with_other_content_is_refused(tmp_path, change):
    path = tmp_path / "m.npz"
    save_bare(path, BareGPT(CONFIG), "{}")
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(CourseError, match="train the model again"):
        load_bare(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CourseError, match="no such file"):
        load_bare(tmp_path / "none.npz")
    with pytest.raises(CourseError, match="is a folder"):
        load_bare(tmp_path)
