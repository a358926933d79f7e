"""shared/model/layers.py: norms, activations and feed-forward layers against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    store_by_column,
)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def test_layer_norm_equals_torch():
    x, weight, bias = torch.randn(2, 3, 7) * 5 + 2, torch.randn(7), torch.randn(7)
    expected = F.layer_norm(x, (7,), weight, bias)
    assert torch.allclose(layer_norm(x, weight, bias), expected, atol=1e-5)
    module = LayerNorm(7)
    module.load_state_dict({"weight": weight, "bias": bias})
    assert torch.allclose(module(x), expected, atol=1e-5)


def test_rms_norm_equals_torch():
    x, weight = torch.randn(2, 3, 7) * 5 + 2, torch.randn(7)
    assert torch.allclose(rms_norm(x), F.rms_norm(x, (7,), eps=1e-6), atol=1e-5)
    assert torch.allclose(RMSNorm(7)(x), rms_norm(x))
    module = WeightedRMSNorm(7)
    module.load_state_dict({"weight": weight})
    assert torch.allclose(module(x), F.rms_norm(x, (7,), weight, eps=1e-6), atol=1e-5)
    assert rms_norm(torch.zeros(4)).tolist() == [0, 0, 0, 0]


def test_activations_equal_torch():
    x = torch.linspace(-6, 6, 101)
    assert torch.allclose(gelu_tanh(x), F.gelu(x, approximate="tanh"), atol=1e-6)
    assert torch.allclose(silu(x), F.silu(x), atol=1e-6)
    assert torch.allclose(relu_squared(x), torch.where(x > 0, x * x, 0))


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


def test_storing_by_column_changes_the_order_in_memory_only():
    layer, x = SwiGLU(5, 11), torch.randn(2, 3, 5)
    weights, before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}, layer(x)
    store_by_column(layer)
    assert layer.up.weight.shape == (22, 5) and layer.up.weight.stride() == (1, 22)
    assert torch.allclose(layer(x), before, atol=1e-6)
    layer(x).sum().backward()
    assert layer.up.weight.grad.stride() == (1, 22)  # so that optimizers walk both in the same order
    layer.load_state_dict(weights)
    assert layer.up.weight.stride() == (1, 22)
    assert torch.equal(layer.down.weight, weights["down.weight"])
