"""shared/model/layers.py: norms, activations and feed-forward layers against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, LlamaConfig, NanoChatConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.nanochat.modeling_nanochat import NanoChatMLP

from shared.model.attention import MultiHeadAttention
from shared.model.layers import (
    Block,
    FeedForward,
    LayerNorm,
    ReLUSquared,
    RMSNorm,
    SwiGLU,
    WeightedRMSNorm,
    gelu_tanh,
    layer_norm,
    relu_squared,
    rms_norm,
    silu,
    store_by_long_side,
)

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
RANDOM_SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(4, 80))  # B, T, D


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=30, deadline=None)
@given(shape=RANDOM_SIZES, seed=st.integers(0, 10**6))
def test_norms_equal_torch(dtype, tolerance, shape, seed):
    torch.manual_seed(seed)
    width = shape[-1]
    x = 3 * torch.randn(shape, dtype=dtype) + 1
    weight, bias = torch.randn(width, dtype=dtype), torch.randn(width, dtype=dtype)
    expected = F.layer_norm(x, (width,), weight, bias)
    assert torch.allclose(layer_norm(x, weight, bias), expected, rtol=tolerance, atol=tolerance)
    module = LayerNorm(width).to(dtype)
    module.load_state_dict({"weight": weight, "bias": bias})
    assert torch.allclose(module(x), expected, rtol=tolerance, atol=tolerance)
    plain = F.rms_norm(x, (width,), eps=1e-6)
    assert torch.allclose(rms_norm(x), plain, rtol=tolerance, atol=tolerance)
    assert torch.equal(RMSNorm(width)(x), rms_norm(x))
    module = WeightedRMSNorm(width).to(dtype)
    module.load_state_dict({"weight": weight})
    assert torch.allclose(module(x), plain * weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 3, 7)])
def test_norms_take_any_axes_in_front(shape):
    x, weight, bias = torch.randn(shape), torch.randn(7), torch.randn(7)
    assert torch.allclose(layer_norm(x, weight, bias), F.layer_norm(x, (7,), weight, bias), atol=1e-5)
    assert torch.allclose(rms_norm(x), F.rms_norm(x, (7,), eps=1e-6), atol=1e-5)


def test_what_a_norm_forgets():
    x, one, zero = torch.randn(5, 16, dtype=torch.float64), torch.ones(16), torch.zeros(16)
    assert torch.allclose(layer_norm(1000 * x + 50, one, zero), layer_norm(x, one, zero), atol=1e-4)
    assert torch.allclose(rms_norm(1000 * x), rms_norm(x), atol=1e-4)
    assert not torch.allclose(rms_norm(x + 50), rms_norm(x), atol=0.1)
    assert layer_norm(torch.full((4,), 7.0), torch.ones(4), torch.zeros(4)).tolist() == [0, 0, 0, 0]
    assert rms_norm(torch.zeros(4)).tolist() == [0, 0, 0, 0]


def test_no_norm_lets_one_position_see_another():
    x = torch.randn(2, 5, 8)
    changed = x.clone()
    changed[:, -1] = torch.randn(8)
    for norm in (LayerNorm(8), RMSNorm(8), WeightedRMSNorm(8)):
        assert torch.equal(norm(changed)[:, :-1], norm(x)[:, :-1])
        assert torch.allclose(norm(x[:1]), norm(x)[:1], atol=1e-6)  # the other texts of the batch do not matter


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_activations_equal_torch(dtype, tolerance):
    x = torch.linspace(-9, 9, 1001, dtype=dtype)
    assert torch.allclose(gelu_tanh(x), F.gelu(x, approximate="tanh"), rtol=0, atol=tolerance)
    assert torch.allclose(silu(x), F.silu(x), rtol=0, atol=tolerance)
    assert torch.allclose(relu_squared(x), torch.where(x > 0, x * x, 0), rtol=tolerance, atol=tolerance)
    assert (gelu_tanh(x) - F.gelu(x)).abs().max() < 5e-4  # what the tanh form costs


@pytest.mark.parametrize("function", [gelu_tanh, relu_squared, silu, rms_norm])
def test_gradients_are_right(function):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))


def test_feed_forward_layers_by_their_formula():
    x = torch.randn(2, 3, 5)
    gelu = FeedForward(5)
    assert gelu.up.weight.shape == (20, 5)
    assert torch.allclose(gelu(x), gelu.down(gelu_tanh(gelu.up(x))), atol=1e-6)
    squared = ReLUSquared(5, 11)
    expected = x @ squared.up.weight.T
    expected = torch.where(expected > 0, expected**2, 0) @ squared.down.weight.T
    assert torch.allclose(squared(x), expected, atol=1e-5)
    gated = SwiGLU(5, 11)
    gate, value = gated.up.weight[:11], gated.up.weight[11:]
    expected = (silu(x @ gate.T) * (x @ value.T)) @ gated.down.weight.T
    assert torch.allclose(gated(x), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_feed_forward_layers_equal_transformers(dtype, tolerance):
    width, hidden = 6, 11
    sizes = {"hidden_size": width, "intermediate_size": hidden}
    x = torch.randn(2, 3, width, dtype=dtype)

    ours, theirs = FeedForward(width).to(dtype), GPT2MLP(4 * width, GPT2Config(n_embd=width, resid_pdrop=0)).to(dtype)
    weights = {"c_fc": ours.up, "c_proj": ours.down}
    theirs.load_state_dict(
        {f"{name}.weight": layer.weight.T for name, layer in weights.items()}
        | {f"{name}.bias": layer.bias for name, layer in weights.items()}
    )
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=tolerance)

    ours, theirs = (
        ReLUSquared(width, hidden).to(dtype),
        NanoChatMLP(NanoChatConfig(**sizes, num_attention_heads=2)).to(dtype),
    )
    theirs.load_state_dict({"fc1.weight": ours.up.weight, "fc2.weight": ours.down.weight})
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=tolerance)

    ours, theirs = SwiGLU(width, hidden).to(dtype), LlamaMLP(LlamaConfig(**sizes, num_attention_heads=2)).to(dtype)
    gate, value = ours.up.weight.split(hidden)
    theirs.load_state_dict({"gate_proj.weight": gate, "up_proj.weight": value, "down_proj.weight": ours.down.weight})
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=tolerance)


def test_weighted_rms_norm_equals_llamas():
    x, ours, theirs = 4 * torch.randn(2, 3, 9), WeightedRMSNorm(9), LlamaRMSNorm(9)
    ours.load_state_dict({"weight": torch.randn(9)})
    theirs.load_state_dict(ours.state_dict())
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_gated_units_multiply_two_features():
    gated = SwiGLU(2, 2)  # silu(a) b + silu(-a) (-b) = a b
    gated.load_state_dict(
        {
            "up.weight": torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]),
            "down.weight": torch.tensor([[1.0, 1], [0, 0]]),
        }
    )
    x = torch.randn(50, 2)
    assert torch.allclose(gated(x)[:, 0], x.prod(dim=1), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), tokens=st.integers(1, 6), n_heads=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_block_equals_torchs_encoder_layer(dtype, tolerance, batch, tokens, n_heads, seed):
    torch.manual_seed(seed)
    width = 4 * n_heads
    block = Block(LayerNorm(width), MultiHeadAttention(width, n_heads), LayerNorm(width), FeedForward(width)).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():  # a bias of 0 and a weight of 1 could hide a mistake
            parameter.add_(0.3 * torch.randn_like(parameter))
    oracle = nn.TransformerEncoderLayer(width, n_heads, 4 * width, 0.0, gelu_tanh, batch_first=True, norm_first=True)
    names = {
        "norm1.": "norm1.",
        "norm2.": "norm2.",
        "attention.qkv.": "self_attn.in_proj_",
        "attention.out.": "self_attn.out_proj.",
        "feed_forward.up.": "linear1.",
        "feed_forward.down.": "linear2.",
    }
    oracle.to(dtype).load_state_dict(
        {
            theirs + kind: block.state_dict()[ours + kind]
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        }
    )
    x = torch.randn(batch, tokens, width, dtype=dtype)
    future = nn.Transformer.generate_square_subsequent_mask(tokens, dtype=dtype)
    expected = oracle(x, src_mask=future, is_causal=True)
    assert torch.allclose(block(x), expected, rtol=tolerance, atol=tolerance)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, *context):
        return self.factor * x + sum(context)


def test_block_adds_each_branch_to_the_unnormalised_stream():
    block = Block(Times(2), Times(3), Times(5), Times(7))
    x = torch.randn(2, 3, 4)
    middle = x + 3 * (2 * x) + 10  # what attention needs besides x reaches it and nothing else
    assert torch.allclose(block(x, 4, 6), middle + 7 * (5 * middle), rtol=1e-5)


def test_dropout_acts_in_training_only():
    layer, x = FeedForward(6, dropout=0.5), torch.randn(50, 6)
    assert (layer(x) == 0).float().mean() > 0.3
    layer.eval()
    assert (layer(x) != 0).all()


def test_storing_by_long_side_changes_the_order_in_memory_only():
    layer, x = SwiGLU(5, 11), torch.randn(2, 3, 5)
    weights, before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}, layer(x)
    store_by_long_side(layer)
    assert layer.up.weight.shape == (22, 5) and layer.up.weight.stride() == (1, 22)
    assert layer.down.weight.shape == (5, 11) and layer.down.weight.stride() == (11, 1)
    assert torch.allclose(layer(x), before, atol=1e-6)
    layer(x).sum().backward()
    assert layer.up.weight.grad.stride() == (1, 22)  # so that optimizers walk both in the same order
    layer.load_state_dict(weights)
    assert layer.up.weight.stride() == (1, 22)
    assert torch.equal(layer.down.weight, weights["down.weight"])
    layer.down.weight.data = layer.down.weight.data.T.contiguous().T
    store_by_long_side(layer)
    assert layer.down.weight.stride() == (11, 1) and torch.equal(layer.down.weight, weights["down.weight"])


def test_a_table_that_is_multiplied_with_is_stored_by_its_long_side_and_others_are_not():
    model = nn.ModuleDict({"tokens": nn.Embedding(9, 4), "positions": nn.Embedding(9, 4)})
    tokens = model["tokens"].weight.clone()
    store_by_long_side(model, model["tokens"])
    assert model["tokens"].weight.stride() == (1, 9) and model["positions"].weight.stride() == (4, 1)
    assert torch.equal(model["tokens"].weight, tokens)
