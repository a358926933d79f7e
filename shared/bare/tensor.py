"""Reverse-mode automatic differentiation on NumPy arrays: numbers that remember how they were computed.

Forward, every operation computes its result and notes two things beside it: its inputs (the *parents*) and a function
that turns the gradient of the result into the gradients of the parents. Backward, from a loss that is one number, each
of these functions is called once, results before parents. A tensor that was used several times adds up what arrives:

    product = x * w            backward: dloss/dx = w * dloss/dproduct, dloss/dw = x * dloss/dproduct
    loss = product.sum()       backward: dloss/dproduct = 1 for every element

Sources: Linnainmaa (1976), "Taylor expansion of the accumulated rounding error"; Baydin et al. (2018), "Automatic
differentiation in machine learning: a survey", section 3.2.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np

from shared.errors import CourseError

Axes = int | tuple[int, ...] | None
Backward = Callable[[np.ndarray], tuple[np.ndarray | None, ...]]  # gradient of a result -> gradients of its parents


class Arithmetic:
    """What Python calls for a + b, a @ b, a[i] and so on: each hands over to the function that does the work."""

    __array_ufunc__ = None  # so that `array + tensor` asks the tensor and not NumPy

    def __add__(self, other: Any) -> "Tensor":
        return add(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return add(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return multiply(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return multiply(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return divide(other, self)

    def __neg__(self) -> "Tensor":
        return multiply(self, -1.0)

    def __pow__(self: Any, exponent: float) -> "Tensor":
        return power(self, exponent)

    def __matmul__(self, other: Any) -> "Tensor":
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return matmul(other, self)

    def __getitem__(self: Any, index: Any) -> "Tensor":
        return getitem(self, index)


NUMBERS = count()


class Tensor(Arithmetic):
    """An array of float32 or float64, and its place in the graph of operations.

    data: the values. grad: after `backward`, the gradient of the loss, of the shape of data; only for a tensor made
    with requires_grad=True, such as a weight. Numbers and lists become float64; an array keeps its dtype, and one of
    whole numbers is a CourseError. number counts all tensors, so that a result's is larger than those of its parents.
    """

    __slots__ = ("backward_function", "data", "grad", "number", "operation", "parents", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        array = data if isinstance(data, np.ndarray | np.generic) else np.asarray(data, dtype=np.float64)
        if array.dtype not in (np.float32, np.float64):
            raise CourseError(f"a tensor holds float32 or float64, not {array.dtype}: convert the array with astype")
        self.data: np.ndarray = np.asarray(array)  # NumPy's sums return bare numbers: back to an array of shape ()
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad
        self.parents: tuple[Tensor, ...] = ()
        self.backward_function: Backward | None = None
        self.operation = ""
        self.number = next(NUMBERS)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def item(self) -> float:
        return float(self.data.item())

    def sum(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        return sum_over(self, axis, keepdims)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        return mean_over(self, axis, keepdims)

    def reshape(self, *shape: int) -> "Tensor":
        return reshape(self, shape)

    def transpose(self, *axes: int) -> "Tensor":
        return transpose(self, axes or None)

    def __repr__(self) -> str:
        return f"Tensor({self.data}, shape {self.shape}{', requires_grad' if self.requires_grad else ''})"


class Recording:
    """Whether operations are noted for a backward pass: a switch that all tensors share."""

    on = True


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside, operations only compute: where nobody goes backward, as in writing text, no graph is kept alive."""
    before = Recording.on
    Recording.on = False
    try:
        yield
    finally:
        Recording.on = before


def record(data: np.ndarray, parents: tuple[Tensor, ...], backward_function: Backward, operation: str) -> Tensor:
    """The result of an operation, joined to its parents when one of them needs a gradient.

    backward_function takes the gradient of the result, of the shape of data, and returns one for each parent, of the
    parent's shape. It must not write into what it is given: the same array may be on its way to another tensor.
    """
    result = Tensor(data)
    if Recording.on and any(parent.requires_grad for parent in parents):
        result.requires_grad = True
        result.parents, result.backward_function, result.operation = parents, backward_function, operation
    return result


def spent(gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """Stands where a backward function was: the walk has used it up and let go of the arrays it held."""
    raise CourseError("backward has already been through this graph and freed it: compute the loss anew first")


def backward(loss: Tensor) -> None:
    """Add to the .grad of every tensor made with requires_grad=True the derivative of the loss, which has one element.

    A result has a larger number than its parents, so going from the largest number down meets every result before
    its parents, without recursion, however deep the graph. Each node is freed as soon as it has passed its gradient
    on, so activations and gradients are never all in memory together. CourseError for a loss of several elements, one
    that depends on no such tensor, and a second walk through the same graph.
    """
    if loss.data.size != 1:
        raise CourseError(f"backward starts from one number and this tensor has shape {loss.shape}: take its sum first")
    if not loss.requires_grad:
        raise CourseError("no tensor with requires_grad=True leads to this loss: there is nothing to differentiate")
    waiting = {loss.number: np.ones_like(loss.data)}  # gradients that have arrived so far
    ours: set[int] = set()  # where the sum is an array of our own, which may be written into
    queue = [(-loss.number, loss)]
    while queue:
        number, node = heappop(queue)
        gradient = waiting.pop(-number)
        if node.backward_function is None:  # a weight or an input: here the gradient stays
            mine = -number in ours
            node.grad = (gradient if mine else np.array(gradient)) if node.grad is None else node.grad + gradient
            continue
        gradients = node.backward_function(gradient)
        for parent, part in zip(node.parents, gradients, strict=True):
            if part is None or not parent.requires_grad:
                continue
            if parent.number not in waiting:
                waiting[parent.number] = part
                heappush(queue, (-parent.number, parent))
            elif parent.number in ours:
                waiting[parent.number] += part
            else:  # the first part may be on its way to others too, so the sum is a new array
                waiting[parent.number] = waiting[parent.number] + part
                ours.add(parent.number)
        node.parents, node.backward_function = (), spent


def unbroadcast(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo broadcasting: an element that was used for many results gets the sum of their gradients.

    gradient has the shape of the result, what is returned the shape of the operand.
    """
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))  # axes that broadcasting put in front
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis] != 1)
    return gradient.sum(axis=stretched, keepdims=True)


def same_dtype(a: Any, b: Any, operation: str) -> tuple[Tensor, Tensor]:
    """Both as tensors of one dtype; a Python number takes that of the other operand. CourseError when they differ."""
    dtype = next((value.dtype for value in (a, b) if isinstance(value, Tensor)), np.dtype(np.float64))
    one, other = (
        value if isinstance(value, Tensor) else Tensor(np.asarray(value, dtype) if np.isscalar(value) else value)
        for value in (a, b)
    )
    if one.dtype != other.dtype:
        raise CourseError(f"{operation}: {one.dtype} meets {other.dtype}; convert one of the two with astype")
    return one, other


def operands(a: Any, b: Any, operation: str) -> tuple[Tensor, Tensor]:
    """Both as tensors of one dtype whose shapes broadcast; CourseError when they don't match."""
    one, other = same_dtype(a, b, operation)
    try:
        np.broadcast_shapes(one.shape, other.shape)
    except ValueError:
        raise CourseError(f"{operation}: the shapes {one.shape} and {other.shape} do not go together") from None
    return one, other


def add(a: Any, b: Any) -> Tensor:
    """a + b, with broadcasting. Each operand receives the gradient as it is."""
    a, b = operands(a, b, "add")

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return unbroadcast(gradient, a.shape), unbroadcast(gradient, b.shape)

    return record(a.data + b.data, (a, b), backward_function, "+")


def subtract(a: Any, b: Any) -> Tensor:
    """a - b, with broadcasting. The second operand receives the gradient with its sign changed."""
    a, b = operands(a, b, "subtract")

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return unbroadcast(gradient, a.shape), unbroadcast(-gradient, b.shape)

    return record(a.data - b.data, (a, b), backward_function, "-")


def multiply(a: Any, b: Any) -> Tensor:
    """a * b element by element, with broadcasting. Each operand's gradient is scaled by the other one."""
    a, b = operands(a, b, "multiply")

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return unbroadcast(gradient * b.data, a.shape), unbroadcast(gradient * a.data, b.shape)

    return record(a.data * b.data, (a, b), backward_function, "*")


def divide(a: Any, b: Any) -> Tensor:
    """a / b element by element, with broadcasting: d(a/b)/da = 1/b and d(a/b)/db = -(a/b)/b."""
    a, b = operands(a, b, "divide")
    quotient = a.data / b.data

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by_b = gradient / b.data
        return unbroadcast(by_b, a.shape), unbroadcast(-by_b * quotient, b.shape)

    return record(quotient, (a, b), backward_function, "/")


def power(a: Tensor, exponent: float) -> Tensor:
    """a ** exponent element by element, for a constant number as exponent: d(a^n)/da = n a^(n-1)."""

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        return (gradient * (exponent * a.data ** (exponent - 1)),)

    return record(a.data**exponent, (a,), backward_function, f"** {exponent:g}")


def exp(a: Tensor) -> Tensor:
    """e to the power of every element; the derivative is the result itself."""
    result = np.exp(a.data)
    return record(result, (a,), lambda gradient: (gradient * result,), "exp")


def log(a: Tensor) -> Tensor:
    """The natural logarithm of every element; the derivative is 1/a."""
    return record(np.log(a.data), (a,), lambda gradient: (gradient / a.data,), "log")


def tanh(a: Tensor) -> Tensor:
    """The hyperbolic tangent of every element; the derivative is 1 - tanh(a)^2."""
    result = np.tanh(a.data)
    return record(result, (a,), lambda gradient: (gradient * (1 - result * result),), "tanh")


def relu(a: Tensor) -> Tensor:
    """max(a, 0) element by element; the derivative is 1 above 0 and 0 elsewhere, at 0 itself too."""
    return record(np.maximum(a.data, 0), (a,), lambda gradient: (gradient * (a.data > 0),), "relu")


def sum_over(a: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum over an axis, several, or all of them. Every element that was added receives the gradient of its sum."""

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        if axis is not None and not keepdims:
            gradient = np.expand_dims(gradient, axis)  # the summed axes again, with size 1
        return (np.broadcast_to(gradient, a.shape),)

    return record(a.data.sum(axis=axis, keepdims=keepdims), (a,), backward_function, "sum")


def mean_over(a: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over an axis, several, or all of them: the sum divided by how many elements go into it."""
    total = sum_over(a, axis, keepdims)
    return multiply(total, total.data.size / a.data.size)


@dataclass(frozen=True)
class GraphNode:
    """A tensor in a drawing of its graph: what made it ("" for an input), its shape, and where to draw it."""

    label: str
    shape: tuple[int, ...]
    column: int  # the longest way from an input
    row: int  # counted within the column


def draw_graph(result: Tensor) -> tuple[list[GraphNode], list[tuple[int, int]]]:
    """The graph behind a result, ready to be drawn: its tensors, and the edges (parent, child) between their places.

    Call it before `backward`, which frees the graph. The result is the last of the nodes.
    """
    found = {result.number: result}
    unseen = [result]
    while unseen:
        for parent in unseen.pop().parents:
            if parent.number not in found:
                found[parent.number] = parent
                unseen.append(parent)
    columns: dict[int, int] = {}
    nodes: list[GraphNode] = []
    places = {number: place for place, number in enumerate(sorted(found))}  # parents come before their results
    for number in places:
        tensor = found[number]
        column = max((columns[parent.number] + 1 for parent in tensor.parents), default=0)
        row = sum(other == column for other in columns.values())
        columns[number] = column
        nodes.append(GraphNode(tensor.operation, tensor.shape, column, row))
    edges = [(places[parent.number], places[number]) for number in places for parent in found[number].parents]
    return nodes, edges


def numeric_gradient(function: Callable[..., float], arrays: Sequence[np.ndarray], step: float) -> list[np.ndarray]:
    """The gradient of function(*arrays), a number, by central differences: (f(x + h) - f(x - h)) / 2h for each element.

    The error shrinks with h^2 until rounding takes over; for float64 a step near the cube root of 1e-16 is best.
    """
    gradients = [np.zeros_like(array) for array in arrays]
    for array, gradient in zip(arrays, gradients, strict=True):
        for place in np.ndindex(array.shape):
            value = array[place]
            array[place] = value + step
            above = function(*arrays)
            array[place] = value - step
            gradient[place] = (above - function(*arrays)) / (2 * step)
            array[place] = value
    return gradients


def check_gradient(function: Callable[..., Tensor], *arrays: np.ndarray, step: float = 1e-5) -> float:
    """The largest difference between our gradients and central differences; about 1e-9 when all is right.

    function takes a tensor for each array and returns a tensor of any shape. Its elements are added up with weights
    that all differ, so that an error in one cannot hide behind another. Differences are relative where the gradient
    is larger than 1. CourseError unless the arrays are float64: in float32, rounding drowns the differences.
    """
    if any(array.dtype != np.float64 for array in arrays):
        raise CourseError("finite differences need float64: float32 rounds away what they measure")

    def weighted(*tensors: Tensor) -> Tensor:
        result = function(*tensors)
        return (result * np.cos(np.arange(result.data.size)).reshape(result.shape)).sum()

    def number(*values: np.ndarray) -> float:
        with no_grad():
            return weighted(*map(Tensor, values)).item()

    tensors = [Tensor(np.array(array), requires_grad=True) for array in arrays]
    backward(weighted(*tensors))
    numeric = numeric_gradient(number, [np.array(array) for array in arrays], step)
    worst = 0.0
    for tensor, expected in zip(tensors, numeric, strict=True):
        ours = np.zeros_like(expected) if tensor.grad is None else tensor.grad
        worst = max(worst, float((np.abs(ours - expected) / np.maximum(1, np.abs(expected))).max(initial=0)))
    return worst


def reshape(a: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in another shape; one size may be -1. The gradient takes the old shape again."""
    try:
        result = a.data.reshape(shape)
    except ValueError:
        raise CourseError(f"reshape: {a.data.size} elements of shape {a.shape} do not fit {tuple(shape)}") from None
    return record(result, (a,), lambda gradient: (gradient.reshape(a.shape),), "reshape")


def transpose(a: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The axes in another order: result axis i is axis axes[i] of a. None turns their order around."""
    order = tuple(reversed(range(a.data.ndim))) if axes is None else tuple(axes)
    if sorted(axis % max(1, a.data.ndim) for axis in order) != list(range(a.data.ndim)):
        raise CourseError(f"transpose: {order} does not name each of the {a.data.ndim} axes of {a.shape} once")
    back = np.argsort([axis % max(1, a.data.ndim) for axis in order])
    return record(a.data.transpose(order), (a,), lambda gradient: (gradient.transpose(back),), "transpose")


def getitem(a: Tensor, index: Any) -> Tensor:
    """a[index], for any index that NumPy knows. The gradient goes back to where the elements were taken from."""
    try:
        result = a.data[index]
    except IndexError as error:
        raise CourseError(f"the index {index} does not fit the shape {a.shape}: {error}") from None

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        # Seen as one long list, a's elements have the places 0, 1, 2, ...; one taken twice receives two gradients.
        taken = np.arange(a.data.size).reshape(a.shape)[index]
        total = np.bincount(np.ravel(taken), weights=np.ravel(gradient), minlength=a.data.size)
        return (total.reshape(a.shape).astype(a.dtype),)

    return record(result, (a,), backward_function, "[]")


def sum_by_id(rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows (N, D) that carry the same id: ids (N,) -> the different ids (n,), ascending, and sums (n, D).

    Equal ids are brought side by side, and every run of them is summed at once: half the time of np.add.at, which
    takes the elements one by one (2048 rows of 128).
    """
    order = np.argsort(ids, kind="stable")
    different, starts = np.unique(ids[order], return_index=True)
    return different, np.add.reduceat(rows[order], starts, axis=0)


def take_rows(table: Tensor, ids: np.ndarray) -> Tensor:
    """Rows of a table by their numbers: table (V, D), ids (...) whole numbers -> (..., D).

    CourseError for ids that are no whole numbers, or outside 0 to V - 1.
    """
    ids = np.asarray(ids)
    n_rows, width = table.shape
    if not np.issubdtype(ids.dtype, np.integer):
        raise CourseError(f"the ids are {ids.dtype}: rows are looked up by whole numbers")
    if ids.size and not (ids.min() >= 0 and ids.max() < n_rows):
        raise CourseError(f"the ids go from {ids.min()} to {ids.max()}, but the table has the rows 0 to {n_rows - 1}")

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        for_table = np.zeros_like(table.data)  # (V, D)
        if ids.size:
            different, sums = sum_by_id(gradient.reshape(-1, width), ids.reshape(-1))
            for_table[different] = sums
        return (for_table,)

    return record(table.data[ids], (table,), backward_function, "take rows")  # (..., D)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one behind the other along an axis; the gradient is cut at the same places."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise CourseError(f"concatenate: the dtypes {[str(tensor.dtype) for tensor in tensors]} differ; convert them")
    try:
        result = np.concatenate([tensor.data for tensor in tensors], axis=axis)
    except ValueError:
        shapes = [tensor.shape for tensor in tensors]
        raise CourseError(f"concatenate: the shapes {shapes} differ in more than axis {axis}") from None
    cuts = np.cumsum([tensor.shape[axis] for tensor in tensors])[:-1]
    return record(result, tuple(tensors), lambda gradient: tuple(np.split(gradient, cuts, axis=axis)), "concatenate")


def matmul(a: Any, b: Any) -> Tensor:
    """Matrix products: a (..., N, K) and b (..., K, M) -> (..., N, M); the axes in front broadcast.

    From result[n, m] = sum_k a[n, k] b[k, m]: the gradient of a is gradient @ b^T, that of b is a^T @ gradient.
    """
    a, b = same_dtype(a, b, "matmul")
    try:
        if min(a.data.ndim, b.data.ndim) < 2:
            raise ValueError
        result = a.data @ b.data  # (..., N, M)
    except ValueError:
        raise CourseError(f"matmul: {a.shape} @ {b.shape} is no product of matrices (N, K) @ (K, M)") from None

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for_a = gradient @ b.data.swapaxes(-1, -2)  # (..., N, K)
        for_b = a.data.swapaxes(-1, -2) @ gradient  # (..., K, M)
        return unbroadcast(for_a, a.shape), unbroadcast(for_b, b.shape)

    return record(result, (a, b), backward_function, "@")


def softmax(a: Tensor, axis: int = -1) -> Tensor:
    """Positive numbers that sum to 1 along the axis, in proportion to exp(a). Same shape.

    The largest element becomes 0 first: the result is the same, and exp cannot overflow. With p the result, raising
    a_j raises p_j and lowers all others, dp_i/da_j = p_i (1[i = j] - p_j), which sums up to the line below.
    """
    p = np.exp(a.data - a.data.max(axis=axis, keepdims=True))
    p /= p.sum(axis=axis, keepdims=True)

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        return (p * (gradient - (gradient * p).sum(axis=axis, keepdims=True)),)

    return record(p, (a,), backward_function, "softmax")


def log_softmax(a: Tensor, axis: int = -1) -> Tensor:
    """ln softmax(a) = a - ln(sum of exp(a)) along the axis, without forming a probability that may underflow to 0."""
    shifted = a.data - a.data.max(axis=axis, keepdims=True)
    result = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        return (gradient - np.exp(result) * gradient.sum(axis=axis, keepdims=True),)

    return record(result, (a,), backward_function, "log softmax")
