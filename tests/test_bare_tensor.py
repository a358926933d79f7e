"""Automatic differentiation in NumPy: every operation beside finite differences and beside PyTorch."""

import ast
import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import shared.bare
from shared.bare import tensor as T
from shared.bare.tensor import Tensor, backward, check_gradient, no_grad
from shared.errors import CourseError

FEW = settings(max_examples=25, deadline=None)


def values(*shape, seed=0, positive=False):
    """Random float64; positive ones lie between 0.5 and 2."""
    rng = np.random.default_rng([seed, *shape])
    return rng.uniform(0.5, 2, shape) if positive else rng.normal(size=shape)


def agrees(ours, theirs, *arrays):
    """Results and gradients equal PyTorch's to 1e-10, and gradients equal finite differences to 1e-6."""
    mine = [Tensor(np.array(array), requires_grad=True) for array in arrays]
    peers = [torch.tensor(array, requires_grad=True) for array in arrays]
    result, expected = ours(*mine), theirs(*peers)
    assert result.shape == tuple(expected.shape) and result.dtype == np.float64
    np.testing.assert_allclose(result.data, expected.detach().numpy(), rtol=1e-10, atol=1e-10)
    upstream = np.random.default_rng(1).normal(size=result.shape)
    backward((result * upstream).sum())
    (expected * torch.tensor(upstream)).sum().backward()
    for tensor, peer in zip(mine, peers, strict=True):
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad, peer.grad.numpy(), rtol=1e-10, atol=1e-10)
    assert check_gradient(ours, *arrays) < 1e-6


# ---- the operations


@FEW
@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4), st.integers(0, 9))
def test_arithmetic_with_broadcasting(shapes, seed):
    one, other = shapes.input_shapes
    a, b, divisor = values(*one, seed=seed), values(*other, seed=seed + 1), values(*other, seed=seed, positive=True)
    agrees(lambda a, b: a + b, lambda a, b: a + b, a, b)
    agrees(lambda a, b: a - b, lambda a, b: a - b, a, b)
    agrees(lambda a, b: a * b, lambda a, b: a * b, a, b)
    agrees(lambda a, b: a / b, lambda a, b: a / b, a, divisor)


@FEW
@given(st.lists(st.integers(1, 4), min_size=0, max_size=3), st.integers(0, 9))
def test_elementwise_functions(shape, seed):
    a, positive = values(*shape, seed=seed), values(*shape, seed=seed, positive=True)
    agrees(T.exp, torch.exp, a)
    agrees(T.tanh, torch.tanh, a)
    agrees(T.relu, torch.relu, a + 0.01 * np.sign(a))  # away from the kink, where there is no derivative
    agrees(T.log, torch.log, positive)
    agrees(lambda a: a**3, lambda a: a**3, a)
    agrees(lambda a: a**-0.5, lambda a: a**-0.5, positive)
    agrees(lambda a: -a, lambda a: -a, a)
    agrees(lambda a: 2 - a, lambda a: 2 - a, a)
    agrees(lambda a: 1 / a, lambda a: 1 / a, positive)


@FEW
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans(), st.data())
def test_reductions(shape, keepdims, data):
    a = values(*shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    agrees(lambda a: a.sum(axis, keepdims), lambda a: a.sum(axis, keepdims), a)
    agrees(lambda a: a.mean(axis, keepdims), lambda a: a.mean(axis, keepdims), a)
    agrees(lambda a: a.sum(), lambda a: a.sum(), a)
    agrees(lambda a: T.softmax(a, axis), lambda a: a.softmax(axis), a)
    agrees(lambda a: T.log_softmax(a, axis), lambda a: a.log_softmax(axis), a)


def test_sum_over_two_axes():
    agrees(lambda a: a.sum((0, 2)), lambda a: a.sum((0, 2)), values(2, 3, 4))
    agrees(lambda a: a.mean((0, -1), True), lambda a: a.mean((0, -1), True), values(2, 3, 4))


@FEW
@given(
    mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_matmul_with_broadcast_stacks(stacks, sizes):
    n, k, m = sizes
    a, b = values(*stacks.input_shapes[0], n, k), values(*stacks.input_shapes[1], k, m)
    agrees(lambda a, b: a @ b, lambda a, b: a @ b, a, b)


@FEW
@given(st.permutations(range(3)))
def test_shapes_and_transposes(order):
    a = values(2, 3, 4)
    agrees(lambda a: a.transpose(*order), lambda a: a.permute(*order), a)
    agrees(lambda a: a.transpose(), lambda a: a.permute(2, 1, 0), a)
    agrees(lambda a: a.transpose(0, -1, 1), lambda a: a.permute(0, 2, 1), a)
    agrees(lambda a: a.reshape(4, -1), lambda a: a.reshape(4, -1), a)


@pytest.mark.parametrize(
    "index",
    [
        1,
        slice(1, None),
        (slice(None), 2),
        (0, slice(None, None, 2)),
        [2, 0, 2, 2],
        (slice(None), [1, 1]),
        ([0, 0], [1, 1]),
    ],
)
def test_indexing_adds_up_what_is_taken_twice(index):
    agrees(lambda a: a[index], lambda a: a[index], values(3, 4, 2))


def test_indexing_by_an_array_of_bools():
    chosen = np.array([[True, False, True], [False, False, True]])
    agrees(lambda a: a[chosen], lambda a: a[torch.tensor(chosen)], values(2, 3))


@FEW
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 1))
def test_concatenate(sizes, axis):
    arrays = [values(size, 3) if axis == 0 else values(3, size) for size in sizes]
    agrees(lambda *a: T.concatenate(a, axis), lambda *a: torch.cat(a, axis), *arrays)


@FEW
@given(st.lists(st.integers(0, 6), min_size=0, max_size=12))
def test_rows_looked_up_several_times(ids):
    ids = np.array(ids, dtype=np.int64).reshape(2, -1) if len(ids) % 2 == 0 else np.array(ids)
    agrees(lambda a: T.take_rows(a, ids), lambda a: a[torch.from_numpy(ids)], values(7, 3))


@FEW
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_sum_by_id_is_add_at(ids):
    rows = values(len(ids), 3)
    expected = np.zeros((6, 3))
    np.add.at(expected, ids, rows)
    different, sums = T.sum_by_id(rows, np.array(ids))
    assert different.tolist() == sorted(set(ids))
    np.testing.assert_allclose(sums, expected[different], atol=1e-12)


def test_softmax_of_huge_scores_neither_overflows_nor_loses_small_ones():
    scores = Tensor(np.array([[1e4, 1e4 - 1, -1e4]]))
    with np.errstate(all="raise", under="ignore"):
        p, log_p = T.softmax(scores).data, T.log_softmax(scores).data
    np.testing.assert_allclose(p, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0]], atol=1e-15)
    np.testing.assert_allclose(log_p[0, 2], -2e4 - np.log(1 + np.exp(-1)), rtol=1e-12)


# ---- the graph


def test_a_tensor_used_often_adds_up_its_gradients():
    agrees(
        lambda a, b: (a * a + a) * b + T.tanh(a * b) + a,
        lambda a, b: (a * a + a) * b + torch.tanh(a * b) + a,
        values(3, 4),
        values(4),
    )


def test_two_weights_never_share_one_gradient_array():
    a, b = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    backward((a + b).sum())
    a.grad *= 5  # as clipping does
    assert b.grad.tolist() == [1, 1, 1]


def test_gradients_of_two_losses_add_up():
    a = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    backward((a * 3).sum())
    backward((a * a).sum())
    assert a.grad.tolist() == [5, 7]


def test_a_graph_of_20_000_nodes_needs_no_recursion():
    x = start = Tensor(np.array([1.0]), requires_grad=True)
    for _ in range(20_000):
        x = x + 1.0
    assert sys.getrecursionlimit() < 20_000
    backward(x.sum())
    assert start.grad.tolist() == [1]
    del x
    gc.collect()


def test_the_graph_is_freed_as_it_is_walked():
    """When the walk reaches the first operation, the results of the later ones are gone."""
    alive = []

    class Array(np.ndarray):  # plain arrays take no weak references
        pass

    a = Tensor(np.ones(4), requires_grad=True)
    x = T.record(a.data * 2, (a,), lambda gradient: (alive.append(later() is not None) or gradient * 2,), "first")
    kept = np.ones(4).view(Array)
    later = weakref.ref(kept)
    y = T.record(x.data * 1, (x,), lambda gradient, kept=kept: (gradient * kept.view(np.ndarray),), "second")
    del kept
    loss = y.sum()
    del x, y
    assert later() is not None
    backward(loss)
    assert alive == [False] and loss.parents == ()


def test_nothing_is_recorded_inside_no_grad_nor_for_constants():
    a = Tensor(np.ones(2), requires_grad=True)
    with no_grad():
        inside = a * 2
        with no_grad():
            pass
        assert not (a * 2).requires_grad  # the inner block has not switched recording on again
    assert not inside.requires_grad and inside.parents == ()
    assert (a * 2).requires_grad
    assert not (Tensor(np.ones(2)) * 2).requires_grad


def test_recording_goes_on_after_an_error_inside_no_grad():
    with pytest.raises(CourseError), no_grad():
        Tensor(np.ones(2)) + np.ones(3)
    assert (Tensor(np.ones(2), requires_grad=True) * 2).requires_grad


def test_float32_stays_float32():
    a = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    result = T.log_softmax((a * 2 + 1) / 3 - 0.5) @ np.ones((3, 2), np.float32)
    loss = (result**2).mean() + T.take_rows(a, np.array([0])).sum() + a[0].sum() + a.mean()
    assert loss.dtype == np.float32
    backward(loss)
    assert a.grad.dtype == np.float32


def test_a_drawing_shows_every_tensor_once_and_parents_to_the_left():
    a, b = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((3, 4)))
    product = a @ b
    nodes, edges = T.draw_graph((product * product).sum())
    assert [(node.label, node.shape, node.column) for node in nodes] == [
        ("", (2, 3), 0),
        ("", (3, 4), 0),
        ("@", (2, 4), 1),
        ("*", (2, 4), 2),
        ("sum", (), 3),
    ]
    assert edges == [(0, 2), (1, 2), (2, 3), (2, 3), (3, 4)]
    assert len({(node.column, node.row) for node in nodes}) == len(nodes)


# ---- mistakes


def test_a_second_backward_says_so():
    a = Tensor(np.ones(2), requires_grad=True)
    middle = a * 2
    loss, other = middle.sum(), T.exp(middle).sum()
    backward(loss)
    with pytest.raises(CourseError, match="already been through"):
        backward(loss)
    with pytest.raises(CourseError, match="already been through"):
        backward(other)  # a part of its graph went with the first


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Tensor(np.arange(3)), "int64"),
        (lambda: Tensor(np.ones(2)) + np.ones(2, np.float32), "float64 meets float32"),
        (lambda: Tensor(np.ones((2, 3), np.float32)) @ np.ones((3, 2)), "float32 meets float64"),
        (lambda: Tensor(np.ones((2, 3))) * Tensor(np.ones((2, 4))), r"\(2, 3\) and \(2, 4\)"),
        (lambda: Tensor(np.ones((2, 3))) @ Tensor(np.ones((2, 3))), r"\(2, 3\) @ \(2, 3\)"),
        (lambda: Tensor(np.ones(3)) @ Tensor(np.ones((3, 2))), "no product of matrices"),
        (lambda: Tensor(np.ones((2, 3))).reshape(4, 2), "6 elements"),
        (lambda: Tensor(np.ones((2, 3))).transpose(0, 0), "each of the 2 axes"),
        (lambda: Tensor(np.ones((2, 3)))[2], "does not fit"),
        (lambda: T.concatenate([Tensor(np.ones((2, 3))), Tensor(np.ones((2, 2)))]), "differ in more than axis 0"),
        (lambda: T.concatenate([Tensor(np.ones(2)), Tensor(np.ones(2, np.float32))]), "dtypes"),
        (lambda: T.take_rows(Tensor(np.ones((2, 3))), np.array([2])), "rows 0 to 1"),
        (lambda: T.take_rows(Tensor(np.ones((2, 3))), np.array([-1])), "rows 0 to 1"),
        (lambda: T.take_rows(Tensor(np.ones((2, 3))), np.array([0.5])), "whole numbers"),
        (lambda: backward(Tensor(np.ones(2), requires_grad=True) * 2), r"shape \(2,\)"),
        (lambda: backward(Tensor(np.ones(2)).sum()), "nothing to differentiate"),
        (lambda: check_gradient(T.exp, np.ones(2, np.float32)), "need float64"),
    ],
)
def test_mistakes_get_one_clear_line(mistake, message):
    with pytest.raises(CourseError, match=message) as error:
        mistake()
    assert "\n" not in str(error.value)


def test_check_gradient_finds_a_wrong_backward():
    def wrong(a):
        return T.record(a.data**2, (a,), lambda gradient: (gradient * a.data,), "square")  # the 2 is missing

    assert check_gradient(wrong, values(3)) > 0.1
    assert check_gradient(lambda a: a * a, values(3)) < 1e-8


# ---- nothing underneath


def test_the_folder_imports_only_the_standard_library_and_numpy():
    folder = Path(shared.bare.__file__).parent
    allowed = {*sys.stdlib_module_names, "numpy"}
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 7
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name in ("shared.errors", "shared.files") or name.startswith("shared.bare.")
                assert own or name.split(".")[0] in allowed, f"{path.name} imports {name}"
            assert not (isinstance(node, ast.Name) and node.id in ("__import__", "importlib")), path.name
