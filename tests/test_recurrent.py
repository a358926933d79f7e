"""shared/model/seq2seq.py, its recurrent half: steps and layers against PyTorch's, additive attention, writing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.model.seq2seq import (
    LSTM,
    RNN,
    AdditiveAttention,
    Seq2Seq,
    additive_scores,
    greedy_decode,
    lstm_step,
    rnn_step,
    shift_right,
)

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
LAYERS = pytest.mark.parametrize(("layer", "oracle"), [(RNN, nn.RNN), (LSTM, nn.LSTM)], ids=["rnn", "lstm"])
MODELS = pytest.mark.parametrize(("layer", "attention"), [(RNN, False), (LSTM, False), (LSTM, True), (RNN, True)])
VOCAB, START = 9, 8


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def oracle_of(layer, kind):
    """PyTorch's layer with our weights; its second bias is 0."""
    oracle = kind(layer.w_x.shape[1], layer.width, batch_first=True).to(layer.w_x.dtype)
    weights = (layer.w_x, layer.w_h, layer.bias, torch.zeros_like(layer.bias))
    oracle.load_state_dict(dict(zip(oracle.state_dict(), weights, strict=True)))
    return oracle


def close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=0, atol=TOLERANCES[ours.dtype])


def model_of(layer=LSTM, attention=True):
    embedding, width = 5, 7
    decoder = layer(embedding + (width if attention else 0), width)
    return Seq2Seq(
        VOCAB, embedding, layer(embedding, width), decoder, AdditiveAttention(width, 6) if attention else None
    )


@DTYPES
@settings(deadline=None, max_examples=25)
@given(batch=st.integers(1, 4), n_in=st.integers(1, 6), width=st.integers(1, 7), scale=st.floats(0.1, 3))
def test_steps_equal_torch(dtype, batch, n_in, width, scale):
    x, h, c = (torch.randn(batch, size, dtype=dtype) * scale for size in (n_in, width, width))
    w_x, w_h, bias = (torch.randn(4 * width, size, dtype=dtype) for size in (n_in, width, 1))
    bias = bias[:, 0]
    none = torch.zeros_like(bias)
    ours, theirs = lstm_step(x, (h, c), w_x, w_h, bias), torch.lstm_cell(x, (h, c), w_x, w_h, bias, none)
    assert close(ours[0], theirs[0]) and close(ours[1], theirs[1])
    w_x, w_h, bias, none = w_x[:width], w_h[:width], bias[:width], none[:width]
    assert close(rnn_step(x, h, w_x, w_h, bias), torch.rnn_tanh_cell(x, h, w_x, w_h, bias, none))


@LAYERS
@DTYPES
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 7))
def test_layers_equal_torch_forward_and_backward(layer, oracle, dtype, batch, tokens, n_in, width):
    ours = layer(n_in, width).to(dtype)
    theirs = oracle_of(ours, oracle)
    first = torch.randn(batch, tokens, n_in, dtype=dtype).requires_grad_()
    second = first.detach().clone().requires_grad_()
    (visible, state), (expected, last) = ours(first), theirs(second)
    assert visible.shape == (batch, tokens, width) and close(visible, expected)
    last = last if isinstance(last, tuple) else (last,)
    assert len(state) == len(last) and all(close(one, other[0]) for one, other in zip(state, last, strict=True))
    upstream = torch.randn_like(visible)
    (visible * upstream).sum().backward()
    (expected * upstream).sum().backward()
    pairs = [(first, second), (ours.w_x, theirs.weight_ih_l0), (ours.w_h, theirs.weight_hh_l0)]
    for one, other in [*pairs, (ours.bias, theirs.bias_ih_l0)]:
        assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=10 * TOLERANCES[dtype])


@pytest.mark.parametrize("layer", [RNN, LSTM])
def test_reading_can_be_interrupted(layer):
    reader, x = layer(4, 6), torch.randn(2, 9, 4)
    whole, state = reader(x)
    beginning, between = reader(x[:, :5])
    rest, after = reader(x[:, 5:], between)
    assert torch.equal(torch.cat((beginning, rest), dim=1), whole)
    assert all(torch.equal(one, other) for one, other in zip(state, after, strict=True))


def test_a_fresh_lstm_starts_with_its_forget_gates_open():
    layer = LSTM(3, 5, forget_bias=2.5)
    assert (layer.bias[5:10] == 2.5).all() and (layer.bias[:5].abs() <= 5**-0.5).all()
    assert LSTM(3, 5).bias[5:10].tolist() == [1.0] * 5
    assert layer.bias.is_leaf and layer.bias.requires_grad


@DTYPES
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7))
def test_additive_scores_are_those_of_a_small_network(dtype, batch, n_queries, n_keys, n, m, hidden):
    queries, keys = torch.randn(batch, n_queries, n, dtype=dtype), torch.randn(batch, n_keys, m, dtype=dtype)
    w_q, w_k, v = (torch.randn(*shape, dtype=dtype) for shape in ((hidden, n), (hidden, m), (hidden,)))
    scores = additive_scores(queries, keys, w_q, w_k, v)
    assert scores.shape == (batch, n_queries, n_keys)
    network = nn.Sequential(nn.Linear(n + m, hidden, bias=False), nn.Tanh(), nn.Linear(hidden, 1, bias=False)).to(dtype)
    network[0].weight.data, network[2].weight.data = torch.cat((w_q, w_k), dim=1), v[None]
    for b, i, j in ((0, 0, 0), (batch - 1, n_queries - 1, n_keys // 2)):
        assert close(scores[b, i, j], network(torch.cat((queries[b, i], keys[b, j])))[0])


def test_additive_attention_mixes_the_memory_by_its_shares():
    attention, query, memory = AdditiveAttention(6, 4), torch.randn(3, 6), torch.randn(3, 5, 6)
    context, shares = attention(query, memory)
    assert context.shape == (3, 6) and shares.shape == (3, 5) and (shares > 0).all()
    assert torch.allclose(shares.sum(dim=1), torch.ones(3))
    assert torch.allclose(context, torch.einsum("bt,btd->bd", shares, memory), atol=1e-6)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled, moved = attention(query, memory[:, order])
    assert torch.allclose(shuffled, context, atol=1e-6) and torch.allclose(moved, shares[:, order], atol=1e-6)
    with torch.no_grad():
        attention.v.zero_()
    assert torch.allclose(attention(query, memory)[0], memory.mean(dim=1), atol=1e-6)


def test_shift_right():
    target = torch.tensor([[3, 1, 4], [1, 5, 0]])
    assert shift_right(target, 8).tolist() == [[8, 3, 1], [8, 1, 5]]
    assert shift_right(target[:, :1], 8).tolist() == [[8], [8]]


@MODELS
def test_a_step_knows_only_the_tokens_that_were_given_so_far(layer, attention):
    model, source, given_ids = model_of(layer, attention), torch.randint(8, (3, 6)), torch.randint(8, (3, 5))
    logits = model(source, given_ids)
    assert logits.shape == (3, 5, VOCAB)
    changed = given_ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 8
    difference = (model(source, changed) - logits).abs().amax(dim=(0, 2))
    assert (difference[:3] == 0).all() and (difference[3:] > 0).all()


@MODELS
def test_greedy_decoding_agrees_with_teacher_forcing_of_what_it_wrote(layer, attention):
    model, source = model_of(layer, attention), torch.randint(8, (4, 6))
    ids, shares = greedy_decode(model, source, 5, START)
    assert ids.shape == (4, 5) and torch.equal(model(source, shift_right(ids, START)).argmax(dim=-1), ids)
    if attention:
        assert shares.shape == (4, 5, 6) and torch.allclose(shares.sum(dim=-1), torch.ones(4, 5))
    else:
        assert shares is None
    alone, _ = greedy_decode(model, source[2:3], 5, START)
    assert torch.equal(alone[0], ids[2])


def test_without_attention_only_the_last_state_counts():
    source, begin = torch.randint(8, (4, 6)), torch.full((4,), START)
    for attention in (False, True):
        model = model_of(LSTM, attention)
        memory, state = model.read(source)
        one, other = model.write(begin, state, memory)[0], model.write(begin, state, memory.flip(0))[0]
        assert torch.equal(one, other) == (not attention)


@MODELS
def test_every_parameter_learns(layer, attention):
    model, target = model_of(layer, attention), torch.randint(8, (3, 4))
    logits = model(target.flip(1), shift_right(target, START))
    nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
