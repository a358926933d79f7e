"""Checks of chapter 3: scores, masks, weights, heads."""

import math

import numpy as np
import torch

from shared.course.checks import distinct_sizes, exercise, require, require_close, require_shape


@exercise(
    "3.1",
    hints=(
        "Which function makes every number positive, and equal differences into equal ratios?",
        "exp of the scores, divided by its sum along the last axis; keepdim=True keeps the axis for broadcasting.",
        "Subtract `scores.amax(dim=-1, keepdim=True)` before `exp`.",
    ),
)
def softmax(function):
    sizes = distinct_sizes(3)
    scores = torch.randn(*sizes)
    shares = function(scores.clone())
    require_shape(shares, sizes, "the result")
    require((shares > 0).all(), "a share is 0 or negative: dividing scores by their sum is not enough, take exp first")
    sums = shares.sum(dim=-1)
    require(
        not torch.allclose(shares.sum(), torch.tensor(1.0)),
        "all rows together sum to 1: each row is to, so sum along the last axis only",
    )
    require_close(sums, torch.ones_like(sums), "the rows do not sum to 1: is the sum along the last axis, dim=-1?")
    ratios = shares[..., 0] / shares[..., 1]
    require_close(
        ratios,
        (scores[..., 0] - scores[..., 1]).exp(),
        "shares are not in proportion to exp(scores)",
        tolerance=1e-4,
    )
    large = function(torch.tensor([[1000.0, 1000.0]]))
    require(
        not torch.isnan(large).any(), "two scores of 1000 give nan: exp overflows; subtract the largest score first"
    )
    uneven = function(torch.tensor([[0.0, 0.0], [500.0, 500.0]]))
    require(
        not torch.isnan(uneven).any(),
        "a small row beside a row of 500s gives nan: subtract each row's own largest score, not the largest of all",
    )


@exercise(
    "3.2",
    hints=(
        "One matrix product gives all dot products. Which of the two has to be transposed?",
        "`k.transpose(-2, -1)` swaps the last two axes, whatever stands in front.",
        "`(q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)`",
    ),
)
def attention_scores(function):
    batch, heads, queries, keys, width = distinct_sizes(5)
    q, k = torch.randn(batch, heads, queries, width), torch.randn(batch, heads, keys, width)
    scores = function(q, k)
    require_shape(scores, (batch, heads, queries, keys), "the scores")
    plain = (q[..., :, None, :] * k[..., None, :, :]).sum(dim=-1)  # (B, H, Tq, Tk)
    factor = (scores / plain).median()
    diagnoses = (
        (1, "the scores are not divided: their variance is K; divide by sqrt(K)"),
        (1 / width, "the scores are divided by K: their variance shrinks as K grows; divide by its square root"),
        (math.sqrt(width), "the scores are multiplied by sqrt(K): divide"),
        (1 / math.sqrt(keys), "the scores are divided by the root of the number of keys, not of the head width K"),
    )
    for wrong, diagnosis in diagnoses:
        require(not torch.allclose(scores, plain * wrong, atol=1e-4), diagnosis)
    require(torch.allclose(scores, plain * factor, atol=1e-4), "the scores are not dot products of a query with a key")
    require_close(scores, plain / math.sqrt(width), "the dot products are not divided by sqrt(K)", tolerance=1e-4)


@exercise(
    "3.3",
    hints=(
        "Which position does row 0 stand for, with 2 queries and 5 keys?",
        "Compare positions: a column of those of the queries with a row of those of the keys.",
        "Query positions are `torch.arange(keys - queries, keys)[:, None]`; then key positions <= query positions.",
    ),
)
def causal_mask(function):
    queries, keys = sorted(distinct_sizes(2, low=3))
    mask = function(queries, keys)
    require_shape(mask, (queries, keys), "the mask")
    require(mask.dtype == torch.bool, f"the mask is {mask.dtype}, not bool: True where a query may look")
    square = function(queries, queries)
    require(
        not torch.equal(square, torch.ones(queries, queries).bool().triu(1)),
        "the mask is upside down: True means that a query may look",
    )
    require(square.diagonal().all(), "a query does not see itself: is the comparison < instead of <=?")
    require(
        not square.triu(1).any(),
        "a token sees the future: row 0 looks beyond column 0; is the mask missing or transposed?",
    )
    require(square.tril().sum() == queries * (queries + 1) // 2, "a query does not see all that came before it")
    require(
        mask[-1].all(),
        "with more keys than queries, the last query does not see all keys: the queries are the last of the keys",
    )
    expected = [[column <= keys - queries + row for column in range(keys)] for row in range(queries)]
    require(mask.tolist() == expected, "with more keys than queries, row i has to see keys 0 to Tk - Tq + i")


@exercise(
    "3.4",
    hints=(
        "A weight is 0 when its score was -inf before the softmax.",
        "`~mask` is True where one may not look; `masked_fill` writes a value there and returns a new tensor.",
        "`scores.masked_fill(~mask, -math.inf)`, then softmax with dim=-1; skip the first when mask is None.",
    ),
)
def attention_weights(function):
    batch, heads, queries, keys = distinct_sizes(4, low=3)
    scores = torch.randn(batch, heads, queries, keys)
    mask = torch.rand(queries, keys) > 0.5
    mask[:, 0], mask[0, 1:] = True, False
    before = scores.clone()
    weights = function(scores, mask)
    require(torch.equal(scores, before), "the scores that were handed in have changed: masked_fill, not masked_fill_")
    require_shape(weights, (batch, heads, queries, keys), "the weights")
    sums = weights.sum(dim=-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-5):
        columns = weights.sum(dim=-2)
        by_column = torch.allclose(columns, torch.ones_like(columns), atol=1e-5)
        require(not by_column, "the columns sum to 1, not the rows: softmax goes over the keys, dim=-1")
        require(
            not (weights.masked_select(~mask) == 0).all(),
            "hidden weights are 0, but rows do not sum to 1: mask before the softmax, or the future stays in the sum",
        )
    require_close(sums, torch.ones_like(sums), "the rows of the weights do not sum to 1")
    hidden = weights.masked_select(~mask)
    require((weights.masked_select(mask) > 0).all(), "visible keys get no weight: the mask is True where one MAY look")
    require(
        (hidden == 0).all(),
        "hidden keys get weight: a score of 0 is no small score; it has to be -inf before the softmax",
    )
    ratio = weights[..., 1:, 0] / weights[..., 1:, :].amax(dim=-1)
    visible = scores.masked_fill(~mask, -math.inf)[..., 1:, :]
    expected = (visible[..., 0] - visible.amax(dim=-1)).exp()
    require_close(ratio, expected, "the weights are not in proportion to exp(scores)", tolerance=1e-4)
    far = function(torch.tensor([[1.0, 2.0, 300.0]]), torch.tensor([[True, True, False]]))
    require(
        not torch.isnan(far).any() and far.sum() > 0.99,
        "a large hidden score destroys the visible weights: zero and rescale is 0/0; mask before the softmax",
    )
    free = function(torch.zeros(2, 4))
    require_close(free, torch.full((2, 4), 0.25), "without a mask, equal scores have to give equal weights")


def labelled(batch: int, tokens: int, heads: int, width: int) -> torch.Tensor:
    """(B, T, H, K): every entry says where it stands, as a number of the digits b, t, h, c."""
    axes = (torch.arange(size) for size in (batch, tokens, heads, width))
    b, t, h, c = torch.meshgrid(*axes, indexing="ij")
    return (1000 * b + 100 * t + 10 * h + c).float()


@exercise(
    "3.5",
    hints=(
        "Two steps: cut the last axis in two, then bring the heads forward.",
        "The cut gives (B, T, H, K). Which two axes have to change places?",
        "`x.view(B, T, n_heads, K).transpose(1, 2)`",
    ),
)
def split_heads(function):
    batch, tokens, heads, width = distinct_sizes(4)
    entries = labelled(batch, tokens, heads, width)  # (B, T, H, K)
    x = entries.flatten(2)  # (B, T, H*K)
    parts = function(x, heads)
    require(
        tuple(getattr(parts, "shape", ())) != (batch, tokens, heads, width),
        "the heads stand behind the tokens, (B, T, H, K): swap those two axes",
    )
    require_shape(parts, (batch, heads, tokens, width), "the heads")
    require(
        not torch.equal(parts, x.reshape(batch, heads, tokens, width)),
        "head 0 holds the first tokens only: view straight to (B, H, T, K) mixes tokens; cut first, then transpose",
    )
    interleaved = x.reshape(batch, tokens, width, heads).permute(0, 3, 1, 2)
    require(
        not torch.equal(parts, interleaved),
        "head 0 has every H-th column: a head is made of neighbouring columns, so the cut is (..., H, K)",
    )
    require(
        torch.equal(parts, entries.transpose(1, 2)),
        "entries are in the wrong places: head h of token t holds its columns h*K to (h+1)*K - 1",
    )


@exercise(
    "3.6",
    hints=(
        "Undo the two steps of split_heads in reverse order.",
        "First swap heads and tokens back, (B, T, H, K); then join the last two axes.",
        "`x.transpose(1, 2).reshape(B, T, H * K)`; view would refuse, for the numbers have to be copied.",
    ),
)
def merge_heads(function):
    batch, tokens, heads, width = distinct_sizes(4)
    entries = labelled(batch, tokens, heads, width)  # (B, T, H, K)
    parts = entries.transpose(1, 2).contiguous()  # (B, H, T, K)
    merged = function(parts)
    require(
        tuple(getattr(merged, "shape", ())) != (batch, heads, tokens * width),
        "tokens and widths are joined, (B, H, T*K): swap heads and tokens before joining the last two axes",
    )
    require_shape(merged, (batch, tokens, heads * width), "the result")
    require(
        not torch.equal(merged, parts.reshape(batch, tokens, heads * width)),
        "tokens are mixed: joining straight from (B, H, T, K) reads head 0 of several tokens; transpose first",
    )
    require(
        not torch.equal(merged, parts.permute(0, 2, 3, 1).reshape(batch, tokens, heads * width)),
        "the heads are interleaved: head 0 fills the first K columns, head 1 the next K",
    )
    require(
        torch.equal(merged, entries.flatten(2)), "entries are in the wrong places: head h fills columns h*K onwards"
    )


@exercise(
    "3.7",
    hints=(
        "Three conditions on a pair of query and key: not later, real, or the query itself.",
        "`columns >= starts[:, None]` is (B, Tk); give it axes for heads and queries: [:, None, None, :].",
        "`(causal & real[:, None, None, :]) | itself`; itself is `columns == query positions` of shape (Tq, Tk).",
    ),
)
def padded_causal_mask(function):
    batch, queries, keys = sorted(distinct_sizes(3, low=3))
    device = torch.device("cpu")
    plain = function(queries, keys, None, device)
    require_shape(plain, (queries, keys), "the mask without starts")
    starts = torch.randint(0, keys - queries + 2, (batch,))
    starts[0], starts[1] = 0, keys - 1  # a whole row, and one of which only the last token is real
    mask = function(queries, keys, starts, device)
    require_shape(mask, (batch, 1, queries, keys), "the mask with starts")
    require(mask.dtype == torch.bool, f"the mask is {mask.dtype}, not bool")
    positions = range(keys - queries, keys)
    require(
        all(mask[:, 0, row, place].all() for row, place in enumerate(positions)),
        "a filler sees nothing at all: its softmax is 0/0; let every query see itself",
    )
    require(
        not any(mask[:, 0, row, place + 1 :].any() for row, place in enumerate(positions)),
        "a token sees the future: combine with the causal mask by &",
    )
    for row, place in enumerate(positions):
        for b, start in enumerate(starts.tolist()):
            seen = mask[b, 0, row, :place]
            require(not seen[:start].any(), "a key before a row's start is seen: the padding is on the left")
            require(seen[start:].all(), "a real key is hidden: the first real one stands at `starts` itself, so >=")


def attention_case() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random q (B, Tq, K), k and v (B, Tk, K), all sizes different, and a mask (Tq, Tk) with a True in every row."""
    batch, width, queries, keys = sorted(distinct_sizes(4, high=7))
    q, k, v = (np.random.randn(batch, tokens, width) for tokens in (queries, keys, keys))
    mask = np.random.rand(queries, keys) > 0.4
    mask[:, 0], mask[0, 1:], mask[-1] = True, False, True
    return q, k, v, mask


@exercise(
    "3.8",
    hints=(
        "Notebook 3.1 has every step; `k.swapaxes(-1, -2)` is NumPy's k.transpose(-2, -1).",
        "Scores, then 0 or -np.inf added by the mask, then each row minus its maximum, exp, divided by its sum.",
        "Multiply the weights by the factors only for the product with v, and return the weights without them: "
        "`return np.matmul(kept, v, out=out), weights`.",
    ),
)
def attend(function):
    q, k, v, mask = attention_case()
    copies = [array.copy() for array in (q, k, v, mask)]
    result = function(q, k, v, mask)
    require(isinstance(result, tuple) and len(result) == 2, "return two arrays: the mixed values, and the weights")
    mixed, weights = result
    require_shape(weights, (*q.shape[:-1], k.shape[-2]), "the second result, the weights,")
    require_shape(mixed, q.shape, "the first result, the mixed values,")
    require(
        all(np.array_equal(one, other) for one, other in zip(copies, (q, k, v, mask), strict=True)),
        "an array that was handed in has changed: `q /= ...` writes into q itself",
    )
    require((weights[:, ~mask] == 0).all(), "hidden keys get weight: their scores have to be -inf before the softmax")
    require(
        np.allclose(weights.sum(axis=-1), 1),
        "the rows of the weights do not sum to 1: sum over the keys, axis=-1, and mask before the softmax",
    )
    free = function(q, k, v)[1]
    ratio = np.log(free[..., 1] / free[..., 0])
    dots = ((k[:, None, 1] - k[:, None, 0]) * q).sum(axis=-1)
    require(not np.allclose(ratio, dots), "the scores are not divided by sqrt(K)")
    require(
        np.allclose(ratio, dots / math.sqrt(q.shape[-1])),
        "the weights are not in proportion to exp(q·k / sqrt(K)): is it the width of a query that is under the root?",
    )
    require(np.allclose(mixed, weights @ v), "the first result is not the weights times the values")
    with np.errstate(all="ignore"):
        large = function(1000 * q, 1000 * k, v, mask)[1]
    require(not np.isnan(large).any(), "large scores give nan: subtract each row's maximum before exp")
    factors = (np.random.rand(*weights.shape) > 0.5) * 2.0
    dropped, kept = function(q, k, v, mask, factors)
    require(not np.allclose(dropped, mixed), "the factors of dropout make no difference to the mixed values")
    require(np.allclose(dropped, (weights * factors) @ v), "dropout multiplies the weights, after the softmax")
    require(np.allclose(kept, weights), "the weights that you return carry dropout's factors: return them without")
    place = np.full(mixed.shape, np.nan)
    function(q, k, v, mask, None, place)
    require(np.allclose(place, mixed), "the array `out` is not filled: np.matmul(..., out=out)")


def forward_and_gradients(q, k, v, mask, factors, gradient):
    """Attention by PyTorch: (mixed, weights), and by its automatic differentiation the gradients of q, k and v."""
    leaves = [torch.from_numpy(array).clone().requires_grad_() for array in (q, k, v)]
    scores = leaves[0] @ leaves[1].mT / math.sqrt(q.shape[-1])  # (B, Tq, Tk)
    weights = scores.masked_fill(~torch.from_numpy(mask), -math.inf).softmax(dim=-1)  # (B, Tq, Tk)
    mixed = (weights if factors is None else weights * torch.from_numpy(factors)) @ leaves[2]  # (B, Tq, K)
    mixed.backward(torch.from_numpy(gradient))
    return (mixed.detach().numpy(), weights.detach().numpy()), [leaf.grad.numpy() for leaf in leaves]


@exercise(
    "3.9",
    hints=(
        "The loops of notebook 3.3, section 6, say over which index each step sums: it stands inside a product.",
        "Keep dS in one array: dP = gradient @ v^T, times the factors, minus r, times the weights. r is the sum over "
        "the last axis of gradient * mixed, with its axis kept.",
        "`np.matmul(dS, k / math.sqrt(K), out=out[0])`; for k it is dS.swapaxes(-1, -2) with q; for v it is "
        "(weights * factors).swapaxes(-1, -2) with the gradient.",
    ),
)
def attend_backward(function):
    q, k, v, mask = attention_case()

    def judged(q, k, v, factors=None):
        """(ours, PyTorch's) for each of the three gradients."""
        results, expected = forward_and_gradients(q, k, v, mask, factors, gradient)
        given = (gradient, q, k, v, *results)
        copies = [array.copy() for array in given]
        out = [np.full(array.shape, np.nan) for array in (q, k, v)]
        function(*given, factors, out)
        require(
            all(np.array_equal(one, other) for one, other in zip(copies, given, strict=True)),
            "an array that was handed in has changed: others still need it, so write only into `out`",
        )
        for name, array in zip("qkv", out, strict=True):
            require(
                not np.isnan(array).any(),
                f"the place for the gradient of {name} is not filled: write into the arrays of `out`, "
                "with np.matmul(..., out=out[0]) or out[0][...] =",
            )
        return list(zip(out, expected, strict=True))

    def right(pair, factor=1.0):
        return np.allclose(pair[0], factor * pair[1], rtol=1e-6, atol=1e-8)

    gradient = np.random.randn(*q.shape)
    for_q, for_k, for_v = judged(q, k, v)
    require(right(for_v), "the gradient of v is wrong: each value gets its weights times the gradients of the outputs")
    alike = np.broadcast_to(v[:, :1], v.shape).copy()
    require(
        np.allclose(judged(q, k, alike)[0][0], 0),
        "all values are alike, so no score matters, and still q gets a gradient: subtract r, what the row gets "
        "already, before multiplying by the weights",
    )
    root = math.sqrt(q.shape[-1])
    require(not (right(for_q, root) and right(for_k, root)), "q and k get sqrt(K) times too much: divide them as well")
    require(not right(for_q, root), "the gradient of q is sqrt(K) times too large, that of k is not")
    require(not right(for_k, root), "the gradient of k is sqrt(K) times too large, that of q is not")
    require(right(for_q), "the gradient of q is wrong: it is dS @ k / sqrt(K)")
    require(right(for_k), "the gradient of k is wrong: it is dS^T @ q / sqrt(K)")
    for_q, for_k, for_v = judged(q, k, v, (np.random.rand(len(q), *mask.shape) > 0.4) / 0.6)
    require(right(for_v), "with dropout, the gradient of v is wrong: the values were mixed with weights * factors")
    require(
        right(for_q) and right(for_k),
        "with dropout, the gradients of q and k are wrong: the factors multiply dP too, before r is subtracted",
    )
