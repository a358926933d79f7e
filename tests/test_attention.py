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
)
from shared.model.layers import WeightedRMSNorm
from shared.text.embeddings import rotary_table

CPU = torch.device("cpu")


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
    scores = torch.randn(3, 5) * 400
    assert torch.allclose(softmax(scores), torch.softmax(scores, dim=-1), atol=1e-6)
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


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5), st.integers(1, 8))
def test_attend_equals_the_fused_kernel(batch, n_heads, queries, earlier, head_width):
    q = torch.randn(batch, n_heads, queries, head_width)
    k, v = torch.randn(2, batch, n_heads, queries + earlier, head_width)
    mask = causal_mask(queries, queries + earlier)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(attend(q, k, v, mask), expected, atol=1e-5)
    assert torch.allclose(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5)
    if earlier == 0 or queries == 1:
        assert torch.allclose(causal_attention(q, k, v), expected, atol=1e-5)


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


def test_multi_head_attention_equals_torch():
    module, oracle = MultiHeadAttention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    oracle.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": module.qkv.bias,
            "out_proj.weight": module.out.weight,
            "out_proj.bias": module.out.bias,
        }
    )
    x = torch.randn(2, 5, 12)
    expected, _ = oracle(x, x, x, attn_mask=~causal_mask(5, 5), need_weights=False)
    assert torch.allclose(module(x), expected, atol=1e-5)


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
