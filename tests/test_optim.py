"""The optimisers against PyTorch's and against their formulas; the schedules; the groups."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shared.model.gpt import GPT, GPTConfig
from shared.model.modern import ModernConfig, ModernGPT
from shared.training.optim import (
    AdamW,
    Muon,
    clip_gradients,
    newton_schulz,
    parameter_groups,
    warmup_cosine,
    warmup_stable_decay,
)

SIZES = {"vocab_size": 37, "context": 11, "n_layers": 2, "n_heads": 3, "width": 24}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def set_gradients(model, step):
    torch.manual_seed(1000 + step)
    model.zero_grad()
    (model(torch.randn(6, 5)) * torch.randn(6, 3)).sum().backward()


def test_adamw_equals_torch_over_100_steps():
    ours, theirs = network(), network()
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
    groups = [
        [{"params": m[0].parameters(), "weight_decay": 0.3}, {"params": m[2].parameters()}] for m in (ours, theirs)
    ]
    own, oracle = AdamW(groups[0], **options), torch.optim.AdamW(groups[1], **options)
    for step in range(100):
        for model, optimizer in ((ours, own), (theirs, oracle)):
            set_gradients(model, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 + step % 3)
            optimizer.step()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(ours[0].weight, network()[0].weight, atol=0.1)


@pytest.mark.parametrize("make", [lambda p: AdamW(p, lr=0.01), lambda p: Muon(p, lr=0.01)])
def test_an_optimizer_goes_on_from_its_state_dict_bitwise(make):
    torch.manual_seed(0)
    straight, stopped = (nn.Linear(5, 7, bias=False), nn.Linear(5, 7, bias=False))
    stopped.load_state_dict(straight.state_dict())
    optimizers = [make(straight.parameters()), make(stopped.parameters())]
    for step in range(6):
        if step == 3:
            saved = optimizers[1].state_dict()
            optimizers[1] = make(stopped.parameters())
            optimizers[1].load_state_dict(saved)
        for model, optimizer in zip((straight, stopped), optimizers, strict=True):
            torch.manual_seed(step)
            model.weight.grad = torch.randn(7, 5)
            optimizer.step()
    assert torch.equal(straight.weight, stopped.weight)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 40, 24), (4, 24, 40), (1, 64, 8)])
def test_newton_schulz_is_nearly_orthogonal_and_keeps_the_singular_vectors(shape):
    torch.manual_seed(0)
    # singular values from 1 down to 1/20: far from orthogonal
    u, _, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    small = min(shape[1:])
    matrices = 300 * u * torch.linspace(1, 0.05, small) @ vt  # (n, R, C)
    result = newton_schulz(matrices)
    assert result.shape == matrices.shape and result.dtype == matrices.dtype
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    middle = u.mT @ result @ vt.mT  # (n, r, r): diagonal when the singular vectors are those of the input
    assert (middle - torch.diag_embed(middle.diagonal(dim1=-2, dim2=-1))).abs().max() < 0.05


def test_muon_follows_its_formula_for_every_matrix():
    torch.manual_seed(0)
    shapes = [(6, 6), (12, 6), (6, 6), (5, 15), (12, 6)]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros(shape) for shape in shapes]
    optimizer = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        for index, parameter in enumerate(parameters):
            gradient = parameter.grad = torch.randn(shapes[index])
            momenta[index] = 0.9 * momenta[index] + 0.1 * gradient
            look_ahead = 0.9 * momenta[index] + 0.1 * gradient
            scale = math.sqrt(max(1, shapes[index][0] / shapes[index][1]))
            step = 0.1 * scale * newton_schulz(look_ahead[None])[0]
            expected[index] = expected[index] * (1 - 0.1 * 0.2) - step
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=2e-3, rtol=0)  # bfloat16 where it is native


def test_the_gradient_is_not_changed_by_a_step():
    parameter = nn.Parameter(torch.randn(4, 6))
    parameter.grad = torch.randn(4, 6)
    before = parameter.grad.clone()
    Muon([parameter]).step()
    AdamW([parameter]).step()
    assert torch.equal(parameter.grad, before)


@pytest.mark.parametrize(
    "model",
    [
        GPT(GPTConfig(**SIZES)),
        ModernGPT(ModernConfig(**SIZES)),
        ModernGPT(ModernConfig(**SIZES, tied=True)),
        ModernGPT(ModernConfig(**SIZES, norm="weighted_rms", feed_forward="swiglu", n_kv_heads=1)),
    ],
)
def test_every_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model)
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(grouped) == sorted({id(parameter) for parameter in model.parameters()})
    inside_blocks = {id(parameter) for parameter in model.blocks.parameters() if parameter.ndim == 2}
    assert {id(parameter) for parameter in groups["matrices"]} == inside_blocks
    assert any(parameter is model.token_embedding.weight for parameter in groups["embeddings"])
    assert all(parameter.ndim == 1 for parameter in groups["vectors"])


def test_an_untied_head_is_its_own_group_and_frozen_parameters_are_in_none():
    model = ModernGPT(ModernConfig(**SIZES))
    assert [id(p) for p in parameter_groups(model)["head"]] == [id(model.head.weight)]
    model.head.weight.requires_grad = False
    assert parameter_groups(model)["head"] == []


@given(st.integers(1, 300), st.integers(0, 100), st.floats(0, 1), st.integers(0, 300))
def test_schedules_rise_then_fall_between_their_end_points(steps, warmup, floor, decay):
    warmup = min(warmup, steps - 1)
    for factors in (
        [warmup_cosine(step, steps, warmup, floor) for step in range(steps + 1)],
        [warmup_stable_decay(step, steps, warmup, decay, floor) for step in range(steps + 1)],
    ):
        assert factors[warmup] == pytest.approx(1)
        assert factors[0] == pytest.approx(1 / (warmup + 1)) and factors[0] > 0
        assert factors[-1] == pytest.approx(floor, abs=1e-12)
        assert all(a < b for a, b in pairwise(factors[: warmup + 1]))
        assert all(a >= b for a, b in pairwise(factors[warmup:]))


def test_stable_decay_is_level_until_the_decay_and_then_straight():
    factors = [warmup_stable_decay(step, 100, 10, 20) for step in range(101)]
    assert set(factors[10:81]) == {1.0}
    assert factors[80:] == pytest.approx([1 - i / 20 for i in range(21)])


def test_cosine_is_half_way_in_the_middle():
    assert warmup_cosine(60, 110, 10, floor=0.2) == pytest.approx(0.6)


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_equals_torch(max_norm):
    ours, theirs = network(), network()
    set_gradients(ours, 0)
    set_gradients(theirs, 0)
    ours[0].bias.grad = theirs[0].bias.grad = None  # a parameter that got no gradient
    norm = clip_gradients(ours.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours[2].weight.grad, theirs[2].weight.grad)
