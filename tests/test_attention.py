"""shared/model/attention.py: attention by hand against PyTorch's, heads, the cache."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import CourseError
from shared.model.attention import (
    KVCache,
    MultiHeadAttention,
    RotaryAttention,
    attend,
    attention_scores,
    attention_weights,
    causal_attention,
    causal_mask,
    merge_heads,
    padded_causal_mask,
    softmax,
    split_heads,
    window_mask,
)
from shared.model.layers import WeightedRMSNorm
from shared.text.embeddings import rotary_table

CPU = torch.device("cpu")
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def heads(*shape):
    return tuple(torch.randn(*shape) for _ in range(3))


def test_causal_mask_by_loops():
    for queries, keys in ((1, 1), (4, 4), (2, 5), (1, 6)):
        mask = causal_mask(queries, keys)
        assert mask.shape == (queries, keys)
        for i in range(queries):
            for j in range(keys):
                assert mask[i, j].item() == (j <= keys - queries + i)


def test_softmax_equals_torch_and_does_not_overflow():
    for dtype, tolerance in PRECISIONS:
        scores = torch.randn(3, 5, dtype=dtype) * 400
        assert torch.allclose(softmax(scores), torch.softmax(scores, dim=-1), rtol=0, atol=tolerance)
    assert softmax(torch.tensor([1e4, 1e4])).tolist() == [0.5, 0.5]


def test_scores_have_unit_variance():
    scores = attention_scores(torch.randn(300, 64), torch.randn(200, 64))
    assert scores.shape == (300, 200)
    assert scores.var().item() == pytest.approx(1, abs=0.05)


def test_weights_are_zero_where_masked_and_rows_sum_to_one():
    weights = attention_weights(torch.randn(2, 3, 4, 6), causal_mask(4, 6))
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 3, 4))
    assert (weights[..., ~causal_mask(4, 6)] == 0).all()
    assert (weights[..., causal_mask(4, 6)] > 0).all()


def qkv_and_masks(sizes, earlier, dtype):
    """Random q, k, v with distinct sizes on their axes and the four kinds of mask: none, causal, padding, both."""
    batch, n_heads, queries, head_width = sizes[:4]
    keys = queries + earlier
    q = torch.randn(batch, n_heads, queries, head_width, dtype=dtype)
    k, v = torch.randn(2, batch, n_heads, keys, head_width, dtype=dtype)
    starts = torch.randint(0, keys, (batch,))
    real = (torch.arange(keys) >= starts[:, None])[:, None, None, :]
    both = padded_causal_mask(queries, keys, starts, CPU)
    return q, k, v, {"none": None, "causal": causal_mask(queries, keys), "padding": real, "both": both}


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float32", "float64"])
@settings(deadline=None, max_examples=25)
@given(sizes=st.permutations(range(1, 9)), earlier=st.integers(0, 5))
def test_attend_equals_the_fused_kernel(dtype, tolerance, sizes, earlier):
    q, k, v, masks = qkv_and_masks(sizes, earlier, dtype)
    for name, mask in masks.items():
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert torch.allclose(attend(q, k, v, mask), expected, rtol=0, atol=tolerance), name
        if mask is not None:
            assert torch.allclose(causal_attention(q, k, v, mask), expected, rtol=0, atol=tolerance), name
    if earlier == 0 or q.shape[2] == 1:
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=masks["causal"])
        assert torch.allclose(causal_attention(q, k, v), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["none", "causal", "padding", "both"])
def test_attend_has_the_gradients_of_the_fused_kernel(dtype, tolerance, name):
    q, k, v, masks = qkv_and_masks((2, 3, 5, 7), 4, dtype)
    upstream = torch.randn_like(q)
    found = []
    for attention in (attend, F.scaled_dot_product_attention):
        leaves = [part.clone().requires_grad_() for part in (q, k, v)]
        (attention(*leaves, masks[name]) * upstream).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["causal", "both"])
def test_a_later_key_or_value_moves_no_earlier_output(name):
    q, k, v, masks = qkv_and_masks((2, 3, 5, 7), 4, torch.float32)
    before = attend(q, k, v, masks[name])
    for row in range(5):
        later_k, later_v = k.clone(), v.clone()
        later_k[:, :, 4 + row :] += 3
        later_v[:, :, 4 + row :] -= 3
        after = attend(q, later_k, later_v, masks[name])
        assert torch.equal(after[:, :, :row], before[:, :, :row])
        assert (after[:, :, row:] != before[:, :, row:]).any(dim=-1).all()


def test_a_padded_row_equals_the_row_alone():
    q, k, v = heads(2, 3, 6, 4)
    mask = padded_causal_mask(6, 6, torch.tensor([0, 4]), CPU)
    padded = attend(q, k, v, mask)
    alone = attend(*(part[1:, :, 4:] for part in (q, k, v)), causal_mask(2, 2))
    assert torch.allclose(padded[1:, :, 4:], alone, atol=1e-6)
    assert not padded.isnan().any()


def test_a_row_that_sees_nothing_is_nan_and_no_average_of_what_is_hidden():
    weights = attention_weights(torch.randn(2, 3), torch.tensor([[False] * 3, [True, False, True]]))
    assert weights[0].isnan().all() and weights[1].sum() == pytest.approx(1)


def test_grouped_heads_share_keys_in_order():
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    repeated = [part.repeat_interleave(2, dim=1) for part in (k, v)]  # heads 0 and 1 use key head 0, and so on
    assert torch.allclose(causal_attention(q, k, v), attend(q, *repeated, causal_mask(5, 5)), atol=1e-5)


@pytest.mark.parametrize("key_heads", [6, 2])
def test_bf16_training_path_agrees_with_fp32(key_heads):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 33, 16), torch.randn(2, key_heads, 33, 16), torch.randn(2, key_heads, 33, 16)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [part.to(dtype, copy=True).requires_grad_() for part in (q, k, v)]
        out = causal_attention(*leaves)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for exact, rounded in zip(*results, strict=True):
        assert F.cosine_similarity(exact.flatten(), rounded.float().flatten(), dim=0) > 0.999


def test_heads_split_and_merge():
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    parts = split_heads(x, 4)
    assert parts.shape == (2, 4, 3, 2)
    assert parts[1, 3, 2].tolist() == x[1, 2, 6:8].tolist()
    assert torch.equal(merge_heads(parts), x)


def test_padding_is_hidden_and_no_row_is_empty():
    mask = padded_causal_mask(5, 5, torch.tensor([0, 3]), CPU)
    assert mask.shape == (2, 1, 5, 5)
    assert torch.equal(mask[0, 0], causal_mask(5, 5))
    assert mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    newest = padded_causal_mask(1, 5, torch.tensor([0, 3]), CPU)
    assert newest[:, 0, 0].int().tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]


def test_cache_keeps_what_was_stored_and_masks_only_when_needed():
    cache = KVCache(capacity=7)
    assert cache.mask(4, CPU) is None
    k, v, _ = heads(2, 3, 4, 5)
    cache.extend(0, k, v)
    cache.extend(1, -k, -v)
    cache.length = 4
    more_k, more_v, _ = heads(2, 3, 2, 5)
    keys, values = cache.extend(1, more_k, more_v)
    assert torch.equal(keys, torch.cat((-k, more_k), dim=2))
    assert torch.equal(values, torch.cat((-v, more_v), dim=2))
    assert cache.mask(1, CPU) is None
    assert torch.equal(cache.mask(2, CPU), causal_mask(2, 6))


def torch_twin(module):
    """PyTorch's own multi-head attention with the same weights."""
    twin = torch.nn.MultiheadAttention(module.out.in_features, module.n_heads, batch_first=True)
    weights = {"in_proj_weight": module.qkv.weight, "in_proj_bias": module.qkv.bias}
    twin.to(module.out.weight.dtype).load_state_dict(
        weights | {"out_proj.weight": module.out.weight, "out_proj.bias": module.out.bias}
    )
    return twin


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float32", "float64"])
@settings(deadline=None, max_examples=25)
@given(sizes=st.permutations(range(2, 9)), data=st.data())
def test_multi_head_attention_equals_torch(dtype, tolerance, sizes, data):
    batch, n_heads, head_width, tokens = sizes[:4]
    module = MultiHeadAttention(n_heads * head_width, n_heads).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=(n_heads * head_width) ** -0.5)
    twin = torch_twin(module)
    x = torch.randn(batch, tokens, n_heads * head_width, dtype=dtype)
    hidden = ~causal_mask(tokens, tokens)  # PyTorch's True hides

    def same(ours, theirs):
        return torch.allclose(ours, theirs, rtol=0, atol=tolerance)

    expected, _ = twin(x, x, x, attn_mask=hidden, need_weights=False)
    assert same(module(x), expected)
    expected, _ = twin(x, x, x, need_weights=False)
    assert same(module(x, mask=torch.ones(tokens, tokens).bool()), expected)

    lengths = torch.tensor(data.draw(st.lists(st.integers(1, tokens), min_size=batch, max_size=batch)))
    right = torch.arange(tokens) >= lengths[:, None]  # (B, T): the filler behind the shorter rows
    expected, _ = twin(x, x, x, attn_mask=hidden, key_padding_mask=right, need_weights=False)
    assert same(module(x, mask=~hidden & ~right[:, None, None, :]), expected)
    left = torch.arange(tokens) < (tokens - lengths)[:, None]  # (B, T): the filler before them
    mask = padded_causal_mask(tokens, tokens, tokens - lengths, CPU)
    expected, _ = twin(x, x, x, attn_mask=hidden, key_padding_mask=left, need_weights=False)
    assert same(module(x, mask=mask)[~left], expected[~left])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float32", "float64"])
def test_multi_head_attention_has_the_gradients_of_torch(dtype, tolerance):
    module = MultiHeadAttention(15, 3).to(dtype)
    twin = torch_twin(module)
    x = torch.randn(2, 7, 15, dtype=dtype)
    upstream = torch.randn(2, 7, 15, dtype=dtype)
    (module(x) * upstream).mean().backward()
    expected, _ = twin(x, x, x, attn_mask=~causal_mask(7, 7), need_weights=False)
    (expected * upstream).mean().backward()
    pairs = [
        (module.qkv, twin.in_proj_weight, twin.in_proj_bias),
        (module.out, twin.out_proj.weight, twin.out_proj.bias),
    ]
    for ours, weight, bias in pairs:
        assert torch.allclose(ours.weight.grad, weight.grad, rtol=0, atol=tolerance)
        assert torch.allclose(ours.bias.grad, bias.grad, rtol=0, atol=tolerance)


def test_a_later_token_moves_no_earlier_output():
    module = MultiHeadAttention(12, 4)
    x = torch.randn(2, 6, 12)
    before = module(x)
    for place in range(6):
        other = x.clone()
        other[:, place] += 1
        moved = (module(other) - before).abs().amax(dim=(0, 2)) > 0
        assert moved.tolist() == [False] * place + [True] * (6 - place)


def test_dropout_acts_in_training_only():
    module = MultiHeadAttention(12, 3, dropout=0.5)
    x = torch.randn(2, 5, 12)
    assert not torch.allclose(module(x), module(x))
    module.residual_dropout.p = 0.0  # what is left acts on the weights
    assert not torch.allclose(module(x), module(x))
    module.eval()
    plain = MultiHeadAttention(12, 3)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(x), plain(x))


@given(st.integers(1, 9), st.integers(0, 7), st.integers(1, 18))
def test_window_mask_is_a_band_of_the_square_table(queries, earlier, window):
    keys = queries + earlier
    band = torch.ones(keys, keys).tril().triu(1 - window).bool()[earlier:]  # the rows of the last queries
    mask = window_mask(queries, keys, window)
    assert mask.dtype == torch.bool and torch.equal(mask, band)
    assert mask.sum(dim=-1).tolist() == [min(window, position + 1) for position in range(earlier, keys)]
    if window >= keys:
        assert torch.equal(mask, causal_mask(queries, keys))


def test_rotary_attention_by_its_parts():
    module = RotaryAttention(12, 6, 2, WeightedRMSNorm)
    with torch.no_grad():
        module.q_norm.weight.copy_(torch.rand(2))
    x, (cos, sin) = torch.randn(2, 5, 12), rotary_table(5, 2)
    q, k, v = module.qkv(x).split([12, 4, 4], dim=-1)
    q, k, v = split_heads(q, 6), split_heads(k, 2), split_heads(v, 2)
    q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.q_norm.weight
    k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turn(part):
        first, second = part[..., :1], part[..., 1:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    k, v = turn(k).repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
    expected = module.out(merge_heads(attend(turn(q), k, v, causal_mask(5, 5))))
    assert torch.allclose(module(x, (cos, sin)), expected, atol=1e-5)


def test_impossible_heads_are_refused():
    with pytest.raises(CourseError, match="5 equal heads"):
        MultiHeadAttention(12, 5)
    with pytest.raises(CourseError, match="5 equal heads"):
        RotaryAttention(12, 5, 5, None)
    with pytest.raises(CourseError, match="4 key heads"):
        RotaryAttention(12, 6, 4, None)
