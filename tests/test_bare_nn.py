"""The hand-derived layers: each beside PyTorch, beside finite differences, and beside the small operations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bare_tensor import agrees, values

from shared.bare import nn
from shared.bare import tensor as T
from shared.bare.tensor import Tensor, backward, check_gradient, no_grad
from shared.errors import CourseError

FEW = settings(max_examples=15, deadline=None)
SIZE = st.integers(1, 5)


@FEW
@given(st.lists(SIZE, min_size=0, max_size=2), SIZE, SIZE)
def test_linear(lead, n_in, n_out):
    arrays = values(*lead, n_in), values(n_out, n_in), values(n_out)
    agrees(nn.linear, F.linear, *arrays)
    agrees(nn.linear, F.linear, *arrays[:2])


@FEW
@given(st.lists(SIZE, min_size=0, max_size=2), st.integers(2, 6))
def test_layer_norm(lead, width):
    arrays = values(*lead, width), values(width, seed=1), values(width, seed=2)
    agrees(nn.layer_norm, lambda x, w, b: F.layer_norm(x, w.shape, w, b), *arrays)


@FEW
@given(st.lists(SIZE, min_size=0, max_size=3))
def test_gelu(shape):
    agrees(nn.gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), 2 * values(*shape))


def test_gelu_without_a_graph_is_the_same():
    x = values(3, 4)
    with no_grad():
        inside = nn.gelu_tanh(Tensor(x, requires_grad=True))
    assert inside.data.tolist() == nn.gelu_tanh(Tensor(x, requires_grad=True)).data.tolist()


@FEW
@given(SIZE, SIZE, st.integers(0, 3), SIZE)
def test_attention_of_a_single_head(batch, queries, more, head_width):
    keys = queries + more
    arrays = (
        values(batch, queries, head_width),
        values(batch, keys, head_width),
        values(batch, keys, head_width, seed=1),
    )
    agrees(nn.attention, F.scaled_dot_product_attention, *arrays)
    mask = nn.causal_mask(queries, keys)
    assert mask.tolist() == torch.ones(queries, keys).tril(keys - queries).bool().tolist()
    agrees(
        lambda q, k, v: nn.attention(q, k, v, mask),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.from_numpy(mask)),
        *arrays,
    )


def peer_heads(qkv, n_heads, mask=None):
    """What `multi_head_attention` must compute, by PyTorch's own parts."""
    batch, tokens, width = qkv.shape
    q, k, v = (part.view(batch, tokens, n_heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    return mixed.transpose(1, 2).reshape(batch, tokens, width // 3)


@FEW
@given(SIZE, SIZE, st.integers(1, 3), st.integers(1, 3))
def test_many_heads(batch, tokens, n_heads, head_width):
    qkv = values(batch, tokens, 3 * n_heads * head_width)
    agrees(lambda x: nn.multi_head_attention(x, n_heads), lambda x: peer_heads(x, n_heads), qkv)


def test_padding_is_not_seen_and_gets_no_gradient():
    lengths, tokens = [2, 5, 3], 5
    mask = nn.causal_mask(tokens, tokens) & nn.padding_mask(lengths, tokens)
    qkv = values(3, tokens, 12)
    agrees(lambda x: nn.multi_head_attention(x, 2, mask), lambda x: peer_heads(x, 2, torch.from_numpy(mask)), qkv)
    changed = qkv.copy()
    changed[0, 2:] = 100.0  # the padding of row 0
    one, other = (nn.multi_head_attention(Tensor(x), 2, mask).data for x in (qkv, changed))
    assert np.array_equal(one[0, :2], other[0, :2]) and np.array_equal(one[1:], other[1:])
    x = Tensor(qkv, requires_grad=True)
    backward(nn.multi_head_attention(x, 2, mask)[0, :2].sum())
    assert not x.grad[0, 2:].any() and x.grad[0, :2].any() and not x.grad[1:].any()


def test_attention_dropout_backward_with_fixed_factors():
    factors = nn.dropout_factors((2, 2, 4, 4), 0.4, np.random.default_rng(0), np.float64)
    assert check_gradient(lambda x: nn.multi_head_attention(x, 2, None, factors), values(2, 4, 12)) < 1e-6


def test_no_token_sees_the_future_in_forward_or_backward():
    x = Tensor(values(2, 6, 12), requires_grad=True)
    backward(nn.multi_head_attention(x, 2)[:, 3].sum())
    assert not x.grad[:, 4:].any() and x.grad[:, 3].any()


def test_cache_continues_where_the_whole_would_be_and_refuses_gradients():
    qkv = values(2, 7, 12)
    whole = nn.multi_head_attention(Tensor(qkv), 2).data
    cache, pieces = nn.KVCache(7), []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        pieces.append(nn.multi_head_attention(Tensor(qkv[:, start:stop]), 2, cache=cache).data)
        cache.length = stop
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-12)
    with pytest.raises(CourseError, match="no_grad"):
        nn.multi_head_attention(Tensor(qkv[:, :1], requires_grad=True), 2, cache=nn.KVCache(7))


@FEW
@given(st.lists(SIZE, min_size=1, max_size=2), st.integers(2, 6), st.data())
def test_cross_entropy(lead, vocab_size, data):
    count = math.prod(lead)
    ids = st.one_of(st.just(nn.IGNORE_INDEX), st.integers(0, vocab_size - 1))
    targets = np.array(data.draw(st.lists(ids, min_size=count, max_size=count)))
    targets[0] = 0  # at least one counts
    targets = targets.reshape(lead)
    agrees(
        lambda z: nn.cross_entropy(z, targets),
        lambda z: F.cross_entropy(z.flatten(0, -2), torch.from_numpy(targets).flatten()),
        3 * values(*lead, vocab_size),
    )


def test_cross_entropy_of_huge_logits_is_finite():
    logits = Tensor(np.array([[1e4, 0.0], [0.0, 1e4]]), requires_grad=True)
    loss = nn.cross_entropy(logits, np.array([1, 1]))
    assert loss.item() == pytest.approx(5000)
    backward(loss)
    np.testing.assert_allclose(logits.grad, [[0.5, -0.5], [0, 0]], atol=1e-12)


def test_dropout_keeps_the_mean_and_gives_the_same_zeros_back():
    x = Tensor(np.ones((200, 50)), requires_grad=True)
    assert nn.dropout(x, 0.3, None) is x and nn.dropout(x, 0.0, np.random.default_rng(0)) is x
    result = nn.dropout(x, 0.3, np.random.default_rng(0))
    kept = result.data != 0
    assert abs(kept.mean() - 0.7) < 0.02 and np.allclose(result.data[kept], 1 / 0.7)
    again = nn.dropout(x, 0.3, np.random.default_rng(0))
    assert np.array_equal(result.data, again.data)
    backward(result.sum())
    assert np.array_equal(x.grad, result.data)  # the input was all ones


def test_fused_layers_equal_the_small_operations():
    """The same attention, norm and loss from the operations of tensor.py, gradients included."""
    x, weight, bias = values(3, 4, 6), values(6), values(6, seed=1)

    def small_norm(x, weight, bias):
        centred = x - x.mean(-1, True)
        return centred * ((centred * centred).mean(-1, True) + 1e-5) ** -0.5 * weight + bias

    def small_attention(x):
        scores = x @ x.transpose(0, 2, 1) / math.sqrt(6) + np.where(nn.causal_mask(4, 4), 0.0, -1e30)
        return T.softmax(scores) @ x

    for fused, small, arrays in (
        (nn.layer_norm, small_norm, (x, weight, bias)),
        (lambda x: nn.attention(x, x, x, nn.causal_mask(4, 4)), small_attention, (x,)),
    ):
        results = []
        for function in (fused, small):
            tensors = [Tensor(array, requires_grad=True) for array in arrays]
            result = function(*tensors)
            backward((result * values(*result.shape, seed=3)).sum())
            results.append([result.data, *(tensor.grad for tensor in tensors)])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_modules_find_their_weights_by_name():
    block = nn.Block(6, 2)
    assert list(block.parameters()) == [
        *(f"norm1.{name}" for name in ("weight", "bias")),
        *(f"attention.{part}.{name}" for part in ("qkv", "out") for name in ("weight", "bias")),
        *(f"norm2.{name}" for name in ("weight", "bias")),
        *(f"feed_forward.{part}.{name}" for part in ("up", "down") for name in ("weight", "bias")),
    ]
    head = nn.SingleHeadAttention(6, 4)
    assert {name: tensor.shape for name, tensor in head.parameters().items()}["key.weight"] == (4, 6)
    assert head(Tensor(np.ones((2, 3, 6), np.float32))).shape == (2, 3, 4)


def test_relu_feed_forward_equals_pytorch():
    layer = nn.FeedForward(3, activation="relu", dtype=np.float64)
    for seed, tensor in enumerate(layer.parameters().values()):
        tensor.data[:] = values(*tensor.shape, seed=seed)
    up, down = (torch.nn.Linear(n, m).double() for n, m in ((3, 12), (12, 3)))
    with torch.no_grad():
        for peer, ours in ((up, layer.up), (down, layer.down)):
            peer.weight.copy_(torch.from_numpy(ours.weight.data))
            peer.bias.copy_(torch.from_numpy(ours.bias.data))
    agrees(layer, lambda x: down(torch.relu(up(x))), values(2, 4, 3))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda x: nn.linear(x, Tensor(np.ones((5, 4)))), "last sizes"),
        (lambda x: nn.linear(x, Tensor(np.ones((5, 3), np.float32))), "float64 and the weight float32"),
        (lambda x: nn.layer_norm(x, Tensor(np.ones(4)), Tensor(np.ones(4))), "needs a weight"),
        (lambda x: nn.attention(x, Tensor(np.ones((2, 4, 5))), Tensor(np.ones((2, 4, 5)))), "do not go together"),
        (lambda x: nn.cross_entropy(x, np.zeros(3, np.int64)), r"need \(2, 4\)"),
        (lambda x: nn.cross_entropy(x, np.full((2, 4), 3)), "from 3 to 3"),
        (lambda x: nn.cross_entropy(x, np.full((2, 4), nn.IGNORE_INDEX)), "no target"),
        (lambda x: nn.MultiHeadAttention(6, 4), "4 equal heads"),
        (lambda x: nn.padding_mask([0, 2], 4), "from 0 to 2"),
    ],
)
def test_mistakes_get_one_clear_line(mistake, message):
    with pytest.raises(CourseError, match=message):
        mistake(Tensor(values(2, 4, 3)))
