"""Shapes on paper: strides and broadcasting, beside what PyTorch and NumPy do with real tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import nn

from shared.errors import CourseError
from shared.model.layers import store_by_long_side
from shared.model.shapes import broadcast_shape, contiguous_strides

FEW = settings(max_examples=100, deadline=None)
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)


@FEW
@given(SHAPES)
def test_strides_are_those_of_a_new_tensor(shape):
    assert contiguous_strides(shape) == torch.empty(shape).stride()
    assert contiguous_strides(list(shape)) == contiguous_strides(torch.Size(shape))


@FEW
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.randoms())
def test_an_index_times_the_strides_is_the_place_in_memory(shape, chance):
    x = torch.arange(np.prod(shape)).view(shape)
    index = tuple(chance.randrange(size) for size in shape)
    assert x[index] == sum(i * stride for i, stride in zip(index, contiguous_strides(shape), strict=True))


def test_tall_weights_stored_by_their_long_side_have_the_strides_of_their_transpose():
    layer = nn.Linear(3, 5)
    assert layer.weight.stride() == contiguous_strides((5, 3)) == (3, 1)
    store_by_long_side(layer)
    assert layer.weight.stride() == contiguous_strides((3, 5))[::-1] == (1, 5)


@FEW
@given(mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_dims=4, max_side=4))
def test_shapes_that_fit_have_the_shape_that_numpy_gives_them(shapes):
    assert broadcast_shape(*shapes.input_shapes) == shapes.result_shape
    together = sum(torch.zeros(shape) for shape in shapes.input_shapes)
    assert broadcast_shape(*shapes.input_shapes) == tuple(together.shape)


@FEW
@given(SHAPES, SHAPES)
def test_shapes_that_do_not_fit_are_refused_exactly_where_numpy_refuses_them(one, other):
    try:
        wanted = np.broadcast_shapes(one, other)
    except ValueError:
        with pytest.raises(CourseError, match=r"axis -\d has the sizes \d and \d"):
            broadcast_shape(one, other)
    else:
        assert broadcast_shape(one, other) == wanted


def test_the_axis_that_does_not_fit_is_named():
    with pytest.raises(CourseError, match="axis -2 has the sizes 4 and 7"):
        broadcast_shape((2, 7, 3), (4, 3))
    assert broadcast_shape() == () and broadcast_shape((3, 1)) == (3, 1)
