"""Optimisers in NumPy beside PyTorch's and beside the course's own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bare.gpt import BareConfig, BareGPT
from shared.bare.optim import SGD, AdamW, clip_gradients, learning_rate_at, parameter_groups
from shared.bare.tensor import Tensor
from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.training import optim as peer

SHAPES = {"blocks.0.up.weight": (4, 3), "token_embedding.weight": (5, 3), "norm.bias": (3,)}


def weights(seed=0):
    """Three weights in NumPy and their copies in PyTorch."""
    rng = np.random.default_rng(seed)
    ours = {name: Tensor(rng.normal(size=shape), requires_grad=True) for name, shape in SHAPES.items()}
    return ours, {name: torch.tensor(tensor.data, requires_grad=True) for name, tensor in ours.items()}


def give_gradients(ours, theirs, step):
    rng = np.random.default_rng([7, step])
    for name, shape in SHAPES.items():
        gradient = rng.normal(size=shape)
        ours[name].grad = gradient.copy()
        theirs[name].grad = torch.tensor(gradient)


def assert_equal(ours, theirs):
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.data, theirs[name].detach().numpy(), rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_pytorch(momentum):
    ours, theirs = weights()
    optimizer, other = SGD(ours, 0.1, momentum), torch.optim.SGD(theirs.values(), 0.1, momentum)
    for step in range(6):
        give_gradients(ours, theirs, step)
        optimizer.step()
        other.step()
    assert_equal(ours, theirs)
    assert all(tensor.grad is None for tensor in ours.values())


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_equals_pytorch_and_only_matrices_decay(decay):
    ours, theirs = weights()
    groups = [
        {"params": [parameter], "weight_decay": decay if name == "blocks.0.up.weight" else 0.0}
        for name, parameter in theirs.items()
    ]
    optimizer = AdamW(ours, 0.01, (0.8, 0.95), 1e-6, decay)
    other = torch.optim.AdamW(groups, 0.01, (0.8, 0.95), 1e-6)
    for step in range(6):
        give_gradients(ours, theirs, step)
        optimizer.step()
        other.step()
    assert_equal(ours, theirs)


def test_a_weight_without_gradient_stays():
    ours, theirs = weights()
    give_gradients(ours, theirs, 0)
    ours["norm.bias"].grad = None
    before = {name: tensor.data.copy() for name, tensor in ours.items()}
    AdamW(ours, 0.01).step()
    assert np.array_equal(before["norm.bias"], ours["norm.bias"].data)
    assert not np.array_equal(before["blocks.0.up.weight"], ours["blocks.0.up.weight"].data)


def test_optimisers_work_in_place():
    ours, theirs = weights()
    give_gradients(ours, theirs, 0)
    arrays = [tensor.data for tensor in ours.values()]
    AdamW(ours, 0.01).step()
    assert all(tensor.data is array for tensor, array in zip(ours.values(), arrays, strict=True))


def test_groups_are_those_of_pytorch():
    sizes = (37, 11, 3, 2, 8)
    model, peer_model = BareGPT(BareConfig(*sizes)), GPT(GPTConfig(*sizes))
    names = {id(parameter): name for name, parameter in peer_model.named_parameters()}
    expected = {
        group: {names[id(parameter)] for parameter in members}
        for group, members in peer.parameter_groups(peer_model).items()
        if members
    }
    assert {group: set(members) for group, members in parameter_groups(model.parameters()).items()} == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 60), st.integers(0, 60), st.floats(0, 1))
def test_schedules_equal_the_course_s(step, steps, warmup, decay, floor):
    cosine = learning_rate_at(step, peak=0.5, steps=steps, warmup=warmup, floor=floor)
    assert cosine == pytest.approx(0.5 * peer.warmup_cosine(step, steps, warmup, floor))
    stable = learning_rate_at(step, peak=0.5, steps=steps, warmup=warmup, decay=decay, floor=floor)
    assert stable == pytest.approx(0.5 * peer.warmup_stable_decay(step, steps, warmup, decay, floor))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 20))
def test_clipping_equals_pytorch(max_norm):
    ours, theirs = weights()
    give_gradients(ours, theirs, 0)
    norm = clip_gradients(ours.values(), max_norm)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm).item())
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.grad, theirs[name].grad.numpy(), rtol=1e-10)


def test_clipping_without_a_limit_changes_nothing():
    ours, theirs = weights()
    give_gradients(ours, theirs, 0)
    clip_gradients(ours.values(), math.inf)
    assert all(np.array_equal(tensor.grad, theirs[name].grad.numpy()) for name, tensor in ours.items())
    with pytest.raises(CourseError, match="max_norm is 0"):
        clip_gradients(ours.values(), 0)
