"""The layers of a GPT with their backward passes worked out by hand: attention first, then the rest of a block.

Everything here could be put together from the small operations of `shared.bare.tensor`. But each of those passes over
memory once, and memory is what NumPy waits for. So the parts that take the time are one operation each, whose gradient
was derived on paper: fewer passes, results written over arrays that nobody needs any more, and linear layers as one
product of two matrices, however many axes the input has. Measured forward and backward on one thread (2048 tokens,
D 128, V 1024), the same from small operations takes 1.15 times as long for linear layers, 1.5 for attention, 1.6 for
layer norm, 2.6 for the cross-entropy and 3 for GELU.

Notation: B batch, T tokens, D model width, H heads, K head width, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shared.bare.tensor import Recording, Tensor, record, relu, take_rows
from shared.errors import CourseError


class Module:
    """Something with weights: its attributes that are tensors, modules, or lists of modules belong to it.

    A weight's name is the way to it, such as "blocks.0.attention.qkv.weight". Calling the module calls `forward`.
    """

    def forward(self, *args: Any, **options: Any) -> Tensor:
        raise NotImplementedError

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        return self.forward(*args, **options)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """The names and the weights, in the order in which they were made."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")
            elif isinstance(value, list):
                for place, part in enumerate(value):
                    yield from part.named_parameters(f"{prefix}{name}.{place}.")

    def parameters(self) -> dict[str, Tensor]:
        """All weights by name."""
        return dict(self.named_parameters())


def parameter(shape: Sequence[int], dtype: Any = np.float32) -> Tensor:
    """A weight of zeros; what it starts from is set in one place for the whole model."""
    return Tensor(np.zeros(shape, dtype), requires_grad=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias: x (..., D), weight (E, D), bias (E,) -> (..., E).

    With Y = X W^T + b and G the gradient of Y: dX = G W, dW = G^T X, db = the sum of G's rows. All axes of x but the
    last are taken together, so that each of the three products is a single large one.
    """
    if x.shape[-1] != weight.shape[1]:
        raise CourseError(f"linear: x has shape {x.shape} and the weight {weight.shape}; their last sizes must agree")
    if x.dtype != weight.dtype:
        raise CourseError(f"linear: x is {x.dtype} and the weight {weight.dtype}; convert one of the two with astype")
    rows = x.data.reshape(-1, x.shape[-1])  # (N, D)
    result = rows @ weight.data.T  # (N, E)
    if bias is not None:
        result += bias.data

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gradient = gradient.reshape(-1, weight.shape[0])  # (N, E)
        for_x = (gradient @ weight.data).reshape(x.shape) if x.requires_grad else None  # (..., D)
        for_weight = gradient.T @ rows  # (E, D)
        return (for_x, for_weight) if bias is None else (for_x, for_weight, gradient.sum(axis=0))

    parents = (x, weight) if bias is None else (x, weight, bias)
    return record(result.reshape(*x.shape[:-1], weight.shape[0]), parents, backward_function, "linear")  # (..., E)


class Linear(Module):
    """`linear` with its weight (n_out, n_in) and its bias (n_out,)."""

    def __init__(self, n_in: int, n_out: int, dtype: Any = np.float32) -> None:
        self.weight = parameter((n_out, n_in), dtype)
        self.bias = parameter((n_out,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def dropout_factors(shape: Sequence[int], p: float, rng: np.random.Generator, dtype: Any) -> np.ndarray:
    """What dropout multiplies with: 0 with probability p, otherwise 1/(1 - p), so that the mean stays 1."""
    kept = rng.random(shape, dtype=np.float32) >= p
    return kept.astype(dtype) / (1 - p)


def dropout(x: Tensor, p: float, rng: np.random.Generator | None) -> Tensor:
    """Each element set to 0 with probability p and scaled by 1/(1 - p) otherwise; unchanged without a generator.

    Source: "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (Srivastava et al., 2014), section 4.
    """
    if p == 0 or rng is None:
        return x
    factors = dropout_factors(x.shape, p, rng, x.dtype)
    return record(x.data * factors, (x,), lambda gradient: (gradient * factors,), "dropout")


def causal_mask(queries: int, keys: int) -> np.ndarray:
    """True where a query may look: at itself and at what came before. The queries are the last of the keys.

    Returns bool (Tq, Tk): row i stands at position Tk - Tq + i.
    """
    query_positions = np.arange(keys - queries, keys)[:, None]  # (Tq, 1)
    return np.arange(keys) <= query_positions  # (Tq, Tk)


def padding_mask(lengths: Sequence[int], tokens: int) -> np.ndarray:
    """True where a query may look when row b of a batch has lengths[b] real tokens and padding behind them.

    Combine it with the causal mask by &. Every length must be at least 1. Returns bool (B, 1, 1, T), which broadcasts
    against scores (B, H, T, T).
    """
    if min(lengths) < 1 or max(lengths) > tokens:
        raise CourseError(f"the lengths go from {min(lengths)} to {max(lengths)}: use 1 to {tokens}")
    return (np.arange(tokens) < np.asarray(lengths)[:, None])[:, None, None, :]  # (B, 1, 1, T)


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    factors: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Each query's average of the values, weighted by how well their keys match it; and the weights.

    q (..., Tq, K), k and v (..., Tk, K), mask bool and broadcastable to (..., Tq, Tk), with a True in every row;
    factors: dropout of the weights, (..., Tq, Tk). Returns (..., Tq, K), in `out` if given, and (..., Tq, Tk).
    Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.1.
    """
    weights = (q / math.sqrt(q.shape[-1])) @ k.swapaxes(-1, -2)  # (..., Tq, Tk), so far the scores
    if mask is not None:
        weights += np.where(mask, 0, -np.inf).astype(weights.dtype)
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    kept = weights if factors is None else weights * factors
    return np.matmul(kept, v, out=out), weights


def attend_backward(
    gradient: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mixed: np.ndarray,
    weights: np.ndarray,
    factors: np.ndarray | None,
    out: Sequence[np.ndarray],
) -> None:
    """Write the gradients of q, k and v into the three arrays of `out`.

    With S = q k^T / sqrt(K), P = softmax(S) and Y = P v, and G the gradient of Y (all for one head):
    dv = P^T G, dP = G v^T, dS = P * (dP - r), dq = dS k / sqrt(K), dk = dS^T q / sqrt(K). Here r_i = sum_j dP_ij P_ij
    is the softmax's own sum; put dP = G v^T into it, and it is the product of row i of G with row i of Y, for which
    K numbers are added up instead of Tk. Dropout multiplies P by its factors on the way to Y, and dP on the way back.
    """
    kept = weights if factors is None else weights * factors
    np.matmul(kept.swapaxes(-1, -2), gradient, out=out[2])  # (..., Tk, K)
    for_scores = gradient @ v.swapaxes(-1, -2)  # (..., Tq, Tk), so far dP
    if factors is not None:
        for_scores *= factors
    for_scores -= np.einsum("...k,...k->...", gradient, mixed)[..., None]  # (..., Tq, 1)
    for_scores *= weights
    scale = 1 / math.sqrt(q.shape[-1])
    np.matmul(for_scores, k * scale, out=out[0])  # (..., Tq, K)
    np.matmul(for_scores.swapaxes(-1, -2), q * scale, out=out[1])  # (..., Tk, K)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: np.ndarray | None = None) -> Tensor:
    """A single head, or any number in the leading axes: q (..., Tq, K), k and v (..., Tk, K) -> (..., Tq, K)."""
    if q.shape[-1] != k.shape[-1] or k.shape != v.shape or q.shape[:-2] != k.shape[:-2]:
        raise CourseError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not go together")
    mixed, weights = attend(q.data, k.data, v.data, mask)

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        gradients = tuple(np.empty_like(tensor.data) for tensor in (q, k, v))
        attend_backward(gradient, q.data, k.data, v.data, mixed, weights, None, gradients)
        return gradients

    return record(mixed, (q, k, v), backward_function, "attention")


class SingleHeadAttention(Module):
    """Causal self-attention with one head of width K: (B, T, D) -> (B, T, K)."""

    def __init__(self, width: int, head_width: int, dtype: Any = np.float32) -> None:
        self.query = Linear(width, head_width, dtype)
        self.key = Linear(width, head_width, dtype)
        self.value = Linear(width, head_width, dtype)

    def forward(self, x: Tensor) -> Tensor:
        mask = causal_mask(x.shape[1], x.shape[1])  # (T, T)
        return attention(self.query(x), self.key(x), self.value(x), mask)  # (B, T, K)


class KVCache:
    """Keys and values of the tokens read so far, so that a new token costs one position instead of all of them.

    Room for `capacity` positions is set aside once, in the first pass. `length` counts the filled ones.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: list[np.ndarray] = []  # L of (B, H, capacity, K)
        self.values: list[np.ndarray] = []  # L of (B, H, capacity, K)

    def extend(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store one layer's new keys and values (B, H, Tq, K); return all of that layer's, (B, H, length + Tq, K)."""
        if layer == len(self.keys):
            batch, n_heads, _, head_width = k.shape
            self.keys.append(np.empty((batch, n_heads, self.capacity, head_width), k.dtype))
            self.values.append(np.empty((batch, n_heads, self.capacity, head_width), k.dtype))
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]  # (B, H, Tk, K)


def split_heads(x: np.ndarray, n_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values side by side, (B, T, 3*H*K) -> three views of the same memory, (B, H, T, K) each."""
    batch, tokens, width = x.shape
    parts = x.reshape(batch, tokens, 3, n_heads, width // (3 * n_heads))  # (B, T, 3, H, K)
    q, k, v = parts.transpose(2, 0, 3, 1, 4)  # (B, H, T, K) each
    return q, k, v


def multi_head_attention(
    qkv: Tensor,
    n_heads: int,
    mask: np.ndarray | None = None,
    factors: np.ndarray | None = None,
    cache: KVCache | None = None,
    layer: int = 0,
) -> Tensor:
    """Attention of H heads side by side: qkv (B, T, 3D) -> (B, T, D). Without a mask it is causal.

    The products read q, k and v where they lie in qkv, and write the heads' results and gradients to where the next
    step wants them: splitting and merging heads copies nothing. A cache adds the keys and values of earlier tokens; it
    holds bare arrays, so it cannot be used where a gradient is wanted (CourseError).
    """
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = split_heads(qkv.data, n_heads)  # (B, H, T, K) each
    if cache is not None:
        if Recording.on and qkv.requires_grad:
            raise CourseError("a cache remembers no graph: call the model inside no_grad(), or without the cache")
        k, v = cache.extend(layer, k, v)  # (B, H, Tk, K)
    if mask is None and tokens > 1:  # a single query, the newest, may look at everything
        mask = causal_mask(tokens, k.shape[2])  # (T, Tk)
    result = np.empty((batch, tokens, n_heads, width // n_heads), qkv.dtype)  # (B, T, H, K)
    mixed, weights = attend(q, k, v, mask, factors, out=result.transpose(0, 2, 1, 3))  # (B, H, T, K)

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        gradient = gradient.reshape(result.shape).transpose(0, 2, 1, 3)  # (B, H, T, K)
        for_qkv = np.empty_like(qkv.data)  # (B, T, 3D)
        attend_backward(gradient, q, k, v, mixed, weights, factors, out=split_heads(for_qkv, n_heads))
        return (for_qkv,)

    return record(result.reshape(batch, tokens, width), (qkv,), backward_function, "multi-head attention")  # (B, T, D)


class MultiHeadAttention(Module):
    """Causal self-attention with H heads, as in GPT-2: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, n_heads: int, p: float = 0.0, dtype: Any = np.float32) -> None:
        if width % n_heads:
            raise CourseError(f"width {width} cannot be split into {n_heads} equal heads: choose a multiple")
        self.n_heads, self.p = n_heads, p
        self.qkv = Linear(width, 3 * width, dtype)  # queries, keys and values in one matrix product
        self.out = Linear(width, width, dtype)

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
        mask: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        factors = None
        if self.p and rng is not None:
            factors = dropout_factors((x.shape[0], self.n_heads, x.shape[1], x.shape[1]), self.p, rng, x.dtype)
        mixed = multi_head_attention(self.qkv(x), self.n_heads, mask, factors, cache, layer)  # (B, T, D)
        return dropout(self.out(mixed), self.p, rng)


class Embedding(Module):
    """A table with a row for every id: ids (B, T) -> (B, T, D)."""

    def __init__(self, n_rows: int, width: int, dtype: Any = np.float32) -> None:
        self.weight = parameter((n_rows, width), dtype)

    def forward(self, ids: np.ndarray) -> Tensor:
        return take_rows(self.weight, ids)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Shift and scale every position's vector to mean 0 and variance 1, then by a learned weight and bias.

    x (..., D), weight and bias (D,). With z = (x - mean) / s, s = sqrt(variance + eps), and g = gradient * weight, the
    mean and s depend on x as well, and the three ways together are dx = (g - mean(g) - z * mean(g * z)) / s.
    Source: "Layer Normalization" (Ba et al., 2016), section 3.
    """
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise CourseError(f"layer norm: x {x.shape} needs a weight and a bias of {x.shape[-1:]}, not {weight.shape}")
    width = x.shape[-1]
    z = x.data.reshape(-1, width)  # (N, D)
    z = z - z.mean(axis=1, keepdims=True)
    inverse = 1 / np.sqrt(np.einsum("nd,nd->n", z, z)[:, None] / width + eps)  # (N, 1), 1/s
    z *= inverse
    result = z * weight.data
    result += bias.data

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gradient = gradient.reshape(-1, width)  # (N, D)
        for_weight, for_bias = np.einsum("nd,nd->d", gradient, z), gradient.sum(axis=0)  # (D,), (D,)
        for_x = gradient * weight.data  # (N, D), so far g
        along_z = np.einsum("nd,nd->n", for_x, z)[:, None] / width  # (N, 1)
        for_x -= for_x.mean(axis=1, keepdims=True)
        np.multiply(z, along_z, out=z)  # z has done its work
        for_x -= z
        for_x *= inverse
        return for_x.reshape(x.shape), for_weight, for_bias

    return record(result.reshape(x.shape), (x, weight, bias), backward_function, "layer norm")


class LayerNorm(Module):
    """`layer_norm` with its learned weight and bias."""

    def __init__(self, width: int, dtype: Any = np.float32) -> None:
        self.weight = parameter((width,), dtype)
        self.bias = parameter((width,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)


def gelu_tanh(x: Tensor) -> Tensor:
    """x times the chance that a standard normal number lies below x, by GPT-2's tanh approximation.

    y = x/2 * (1 + t) with t = tanh(u), u = a x + b x^3, a = sqrt(2/pi), b = 0.044715 a, so
    dy/dx = (1 + t)/2 + x/2 * (1 - t^2) * (a + 3 b x^2). Both are worked out here, while x and t are at hand; only the
    slope is kept until the way back. Source: "Gaussian Error Linear Units" (Hendrycks and Gimpel, 2016), section 2.
    """
    a = math.sqrt(2 / math.pi)
    b = 0.044715 * a
    square = x.data * x.data
    t = np.asarray(square * b)  # an array to write into even when x is a single number
    t += a
    t *= x.data
    np.tanh(t, out=t)
    half = t + 1
    half *= 0.5  # (1 + t)/2
    result = half * x.data
    if not (Recording.on and x.requires_grad):
        return Tensor(result)
    # (1 - t^2) * x/2 = (1 - t) * (1 + t)/2 * x = (1 - t) * result, which saves two passes over memory
    np.subtract(1, t, out=t)
    t *= result
    square *= 3 * b
    square += a
    square *= t
    square += half
    slope = square
    return record(result, (x,), lambda gradient: (gradient * slope,), "GELU")


class FeedForward(Module):
    """GPT-2's feed-forward layer: four times wider, an activation, and back. (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, p: float = 0.0, activation: str = "gelu", dtype: Any = np.float32) -> None:
        self.p = p
        self.activation = {"gelu": gelu_tanh, "relu": relu}[activation]
        self.up = Linear(width, 4 * width, dtype)
        self.down = Linear(4 * width, width, dtype)

    def forward(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        hidden = self.activation(self.up(x))  # (B, T, 4D)
        return dropout(self.down(hidden), self.p, rng)  # (B, T, D)


class Block(Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)). (B, T, D) -> (B, T, D).

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 2.3.
    """

    def __init__(self, width: int, n_heads: int, p: float = 0.0, dtype: Any = np.float32) -> None:
        self.norm1 = LayerNorm(width, dtype)
        self.attention = MultiHeadAttention(width, n_heads, p, dtype)
        self.norm2 = LayerNorm(width, dtype)
        self.feed_forward = FeedForward(width, p, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
        mask: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), cache, layer, mask, rng)
        return x + self.feed_forward(self.norm2(x), rng)


IGNORE_INDEX = -100  # a target that nobody has to predict


def cross_entropy(logits: Tensor, targets: np.ndarray) -> Tensor:
    """The mean of -ln p(target) in nats, where p is the softmax of the logits over the vocabulary.

    logits (..., V), targets (...) whole numbers, IGNORE_INDEX where nothing is predicted. Returns one number ().
    For the softmax of z, -ln p_i = ln(sum_j exp z_j) - z_i, and its gradient is p minus 1 at the target. CourseError
    for a target outside the vocabulary, and when there is no target at all.
    """
    targets = np.asarray(targets)
    vocab_size = logits.shape[-1]
    if targets.shape != logits.shape[:-1]:
        raise CourseError(f"the targets have shape {targets.shape}: logits {logits.shape} need {logits.shape[:-1]}")
    flat = targets.reshape(-1)  # (N,)
    rows = np.flatnonzero(flat != IGNORE_INDEX)  # (n,), those that count
    columns = flat[rows]  # (n,)
    if not len(rows):
        raise CourseError("there is no target to predict: every one of them is to be ignored")
    if columns.min() < 0 or columns.max() >= vocab_size:
        raise CourseError(f"the targets go from {columns.min()} to {columns.max()}: the vocabulary has {vocab_size}")
    z = logits.data.reshape(-1, vocab_size)  # (N, V)
    exponentials = z - z.max(axis=1, keepdims=True)  # (N, V)
    chosen = exponentials[rows, columns]  # (n,)
    np.exp(exponentials, out=exponentials)
    sums = exponentials.sum(axis=1)  # (N,)
    loss = (np.log(sums[rows]) - chosen).sum() / len(rows)

    def backward_function(gradient: np.ndarray) -> tuple[np.ndarray]:
        share = np.zeros_like(sums)  # (N,): how much each row weighs, 0 where it is ignored
        share[rows] = gradient / len(rows)
        for_z = exponentials  # it has done its work: the gradient is written over it
        for_z *= (share / sums)[:, None]
        for_z[rows, columns] -= share[rows]
        return (for_z.reshape(logits.shape),)  # (..., V)

    return record(np.asarray(loss, logits.dtype), (logits,), backward_function, "cross-entropy")
