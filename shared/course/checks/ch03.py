"""Checks of chapter 3: scores, masks, weights, heads."""

import math
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from shared.course.checks import distinct_sizes, exercise, require, require_close, require_shape


@exercise(
    "3.1",
    hints=(
        "All four blocks come out of one sum: two products and a bias. What shape has it, along which axis is it cut?",
        "`i, f, g, o = (x @ w_x.T + h @ w_h.T + bias).chunk(4, dim=-1)`; which of the four are gates?",
        "`c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)`, and h is `torch.sigmoid(o) * torch.tanh(c)`.",
    ),
)
def lstm_step(function):
    batch, n_in, width = distinct_sizes(3)
    x, h, c = torch.randn(batch, n_in), torch.randn(batch, width), torch.randn(batch, width)
    w_x, w_h, bias = (torch.randn(4 * width, size) for size in (n_in, width, 1))
    bias = bias[:, 0]
    result = function(x, (h, c), w_x, w_h, bias)
    require(isinstance(result, tuple) and len(result) == 2, "return a tuple of two tensors, the new h and the new c")
    require_shape(result[0], (batch, width), "the first result, h,")
    require_shape(result[1], (batch, width), "the second result, c,")

    def forced(i, f, g, o, cell=c):
        """One step in which the weights are 0, so that the four blocks are the numbers given here."""
        blocks = torch.tensor([i, f, g, o]).repeat_interleave(width)  # (4D,)
        return function(x, (h, cell), torch.zeros_like(w_x), torch.zeros_like(w_h), blocks)

    shut, wide = -40.0, 40.0
    first, second = forced(shut, wide, 0.5, shut)  # keep the cell, show nothing of it
    swapped = torch.allclose(first, c, atol=1e-4) and (second.abs() < 1e-4).all()
    require(not swapped, "the results are in the wrong order: return h first, then c")
    require(
        not torch.allclose(second, torch.full_like(c, 0.5).tanh(), atol=1e-4),
        "with the input gate shut and the forget gate open, the cell is overwritten: the first block is the "
        "input gate, the second the forget gate",
    )
    require(
        not torch.allclose(second, c - math.tanh(0.5), atol=1e-4),
        "a shut input gate subtracts the candidate: a gate is a sigmoid, between 0 and 1, not a tanh",
    )
    require_close(
        second, c, "with the input gate shut and the forget gate open, the cell changes: it is to stay as it is", 1e-4
    )
    new = forced(wide, shut, -2.0, wide)[1]  # forget all, take the candidate in
    candidate = torch.full_like(c, -2.0)
    require(
        not torch.allclose(new, torch.ones_like(c), atol=1e-4),
        "the candidate is taken from the last block: the order is input gate, forget gate, candidate, output gate",
    )
    require(
        not torch.allclose(new, candidate.sigmoid(), atol=1e-4),
        "the candidate went through a sigmoid: it is no gate, and tanh lets it be negative",
    )
    require(not torch.allclose(new, candidate, atol=1e-4), "the candidate did not go through a tanh")
    require(
        not torch.allclose(new, c, atol=1e-4) and not torch.allclose(new, c + candidate.tanh(), atol=1e-4),
        "the forget gate is shut and the old cell is still there: that gate multiplies the old cell, not the candidate",
    )
    require_close(
        new,
        candidate.tanh(),
        "with the forget gate shut and the input gate open, c is to be tanh of the candidate",
        1e-4,
    )
    shown = forced(wide, shut, -2.0, wide)[0]
    require(not torch.allclose(shown, c.tanh(), atol=1e-4), "h is made from the old cell: make the new one first")
    require(not torch.allclose(shown, new, atol=1e-4), "h is the gate times c: the tanh of the cell is missing")
    hidden = forced(shut, wide, 0.5, shut)[0]
    require((hidden.abs() < 1e-4).all(), "the output gate is shut, and h is not 0: it is a sigmoid, the last block")
    require_close(shown, new.tanh(), "with the output gate open, h is to be tanh of the new cell", 1e-4)
    other = function(x, (h + 1, c), w_x, w_h, bias)[1]
    require(not torch.allclose(other, result[1], atol=1e-4), "the old h makes no difference: h @ w_h.T is missing")
    blocks = x[0] @ w_x.T + h[0] @ w_h.T + bias  # (4D,)
    alone = function(x[:1], (h[:1], c[:1]), torch.zeros_like(w_x), torch.zeros_like(w_h), blocks)
    require(
        all(torch.allclose(one[0], all_[0], atol=1e-4) for one, all_ in zip(alone, result, strict=True)),
        "the blocks are not x @ w_x.T + h @ w_h.T + bias",
    )


@exercise(
    "3.2",
    hints=(
        "Project first: (..., Tq, A) and (..., Tk, A). How does one add each row of one to each row of the other?",
        "Give each an axis of length 1: `q[..., :, None, :] + k[..., None, :, :]` is (..., Tq, Tk, A).",
        "`torch.tanh(q[..., :, None, :] + k[..., None, :, :]) @ v` with q = queries @ w_q.T and k = keys @ w_k.T.",
    ),
)
def additive_scores(function):
    batch, n_queries, n_keys, n, m, hidden = distinct_sizes(6)
    queries, keys = torch.randn(batch, n_queries, n), torch.randn(batch, n_keys, m)
    w_q, w_k, v = torch.randn(hidden, n), torch.randn(hidden, m), torch.randn(hidden)
    scores = function(queries, keys, w_q, w_k, v)
    shape = tuple(getattr(scores, "shape", ()))
    require(
        shape != (batch, n_queries, n_keys, hidden),
        "each pair still has A numbers: their dot product with v is missing",
    )
    require(shape != (batch, n_keys, n_queries), "the rows belong to the keys: the result is (..., Tq, Tk)")
    require(
        shape not in ((batch, n_queries, hidden), (batch, n_keys, hidden)),
        "the sum runs over tokens: it runs over the A hidden numbers of each pair, the last axis",
    )
    require_shape(scores, (batch, n_queries, n_keys), "the result")
    sums = scores.sum(dim=-1)
    require(
        not torch.allclose(sums, torch.ones_like(sums), atol=1e-4),
        "the rows sum to 1: these are shares already; return the scores, the softmax comes later",
    )
    require(
        function(queries, keys, w_q, w_k, torch.zeros(hidden)).abs().max() < 1e-6,
        "a v of zeros gives scores: v multiplies the A numbers of each pair, and is not added or left out",
    )
    require(
        function(queries, keys, w_q, w_k, 100 * v).abs().max() > 1.001,
        "no score is above 1, however large v is: the tanh comes before the product with v, not after it",
    )
    mixed = scores[:, 1:, 1:] - scores[:, :1, 1:] - scores[:, 1:, :1] + scores[:, :1, :1]  # 0 for f(query) + g(key)
    if mixed.abs().max() < 1e-4:
        double = function(2 * queries, 2 * keys, w_q, w_k, v)
        require(
            not torch.allclose(double, 2 * scores, rtol=1e-3, atol=1e-3),
            "the tanh is missing: then the query adds the same to all scores of its row, and makes no difference",
        )
        require(False, "a tanh for the query and one for the key: they have to be added first, inside of one tanh")
    zero = function(torch.zeros_like(queries), keys, w_q, w_k, v)
    require(zero.abs().max() > 1e-6, "a query of zeros scores 0 with every key: they are added, not multiplied")
    i, j = n_queries - 1, n_keys - 1
    by_hand = sum(v[a] * math.tanh(w_q[a] @ queries[0, i] + w_k[a] @ keys[0, j]) for a in range(hidden))
    require_close(scores[0, i, j], by_hand, "the score of a pair is not v · tanh(W_q q + W_k k)", tolerance=1e-4)
    single = function(queries[0], keys[0], w_q, w_k, v)
    require_close(single, scores[0], "without a batch, (Tq, N) and (Tk, M), the scores differ: use negative axes", 1e-4)


@exercise(
    "3.3",
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
    "3.4",
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
    require(
        tuple(getattr(scores, "shape", ())) != (batch, heads, keys, queries),
        "the scores stand the wrong way round, (..., Tk, Tq): rows are queries, so it is q times k transposed",
    )
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
    "3.5",
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
    require(
        not torch.equal(square, torch.ones(queries, queries).bool().triu()),
        "the mask is transposed: row 0 sees everything and the last row only itself; rows are queries, columns keys",
    )
    require(square.diagonal().all(), "a query does not see itself: is the comparison < instead of <=?")
    require(
        not torch.equal(square, torch.ones(queries, queries).bool().tril(1)),
        "every query sees one token too far: the last that it may see is itself",
    )
    require(not square.triu(1).any(), "a token sees the future: row 0 looks beyond column 0; is the mask missing?")
    require(square.tril().sum() == queries * (queries + 1) // 2, "a query does not see all that came before it")
    require(
        mask[-1].all(),
        "with more keys than queries, the last query does not see all keys: the queries are the last of the keys",
    )
    expected = [[column <= keys - queries + row for column in range(keys)] for row in range(queries)]
    require(mask.tolist() == expected, "with more keys than queries, row i has to see keys 0 to Tk - Tq + i")


@exercise(
    "3.6",
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
        (hidden == 0).all() or hidden.max() > 0.01,
        "hidden keys keep a little weight: a large negative score is not low enough, it has to be -inf",
    )
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
    require(
        tuple(getattr(mask, "shape", ())) != (batch, queries, keys),
        "the axis for the heads is missing: with starts the mask is (B, 1, Tq, Tk)",
    )
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


def labelled(batch: int, tokens: int, heads: int, width: int) -> torch.Tensor:
    """(B, T, H, K): every entry says where it stands, as a number of the digits b, t, h, c."""
    axes = (torch.arange(size) for size in (batch, tokens, heads, width))
    b, t, h, c = torch.meshgrid(*axes, indexing="ij")
    return (1000 * b + 100 * t + 10 * h + c).float()


@exercise(
    "3.8",
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
    "3.9",
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
    "3.10",
    hints=(
        "Follow the shapes: (B, T, D) -> (B, T, 3D) -> (B, 3H, T, K) -> three of (B, H, T, K) -> mixed -> (B, T, D).",
        "`split_heads(self.qkv(x), 3 * self.n_heads).chunk(3, dim=1)`; then the cache, if there is one.",
        "`mixed = causal_attention(q, k, v, mask, self.dropout if self.training else 0.0)`, and at the end "
        "`self.residual_dropout(self.out(merge_heads(mixed)))`.",
    ),
)
def multi_head_forward(function):
    batch, tokens, heads, width = distinct_sizes(4, low=3)
    module, out = rigged_attention(heads, width)
    x = torch.randn(batch, tokens, heads * width)
    result = function(module, x)
    require_shape(result, x.shape, "the result")
    module.out = lambda joined: joined
    joined = function(module, x)
    require(
        not torch.allclose(result, joined, atol=1e-5),
        "the output projection is forgotten: without self.out each head can write to its own columns only",
    )
    require_close(result, out(joined), "self.out has to act on the merged heads, (B, T, H*K)", 1e-4)
    require_heads_apart(joined, module.qkv(x), heads)
    twin = torch.nn.MultiheadAttention(heads * width, heads, batch_first=True)
    names = {"in_proj_weight": module.qkv.weight, "in_proj_bias": module.qkv.bias}
    twin.load_state_dict(names | {"out_proj.weight": out.weight, "out_proj.bias": out.bias})
    future = torch.ones(tokens, tokens).triu(1).bool()
    expected = twin(x, x, x, attn_mask=future, need_weights=False)[0]
    require_close(result, expected, "with the same weights, torch.nn.MultiheadAttention gives other numbers", 1e-4)
    require_masks(function, module, x, joined)
    require_dropouts(function, module, x, joined, out)
    require_extended_cache(function, module, x, joined)


def rigged_attention(heads, width):
    """What MultiHeadAttention.forward needs of `self`, with random weights and without dropout; and its `out`."""
    qkv, out = torch.nn.Linear(heads * width, 3 * heads * width), torch.nn.Linear(heads * width, heads * width)
    module = SimpleNamespace(
        n_heads=heads, qkv=qkv, out=out, dropout=0.0, residual_dropout=lambda result: result, training=False
    )
    for layer in (qkv, out):
        layer.requires_grad_(False)
        layer.weight.normal_(std=width**-0.5)
    return module, out


def require_heads_apart(joined, wide, heads):
    """The merged heads (B, T, D) must be none of the usual mixtures that can be made of `wide` (B, T, 3D)."""
    batch, tokens, columns = joined.shape
    width = columns // heads
    right = wide.view(batch, tokens, 3 * heads, width).transpose(1, 2).chunk(3, dim=1)
    mixed = wide.reshape(batch, 3 * heads, tokens, width).chunk(3, dim=1)
    triples = wide.view(batch, tokens, heads, 3 * width).transpose(1, 2).chunk(3, dim=-1)
    straight, back = (lambda y: y.reshape(batch, tokens, columns)), (lambda y: y.transpose(1, 2).flatten(2))
    tokens_mixed = "a view straight to (B, H, T, K) mixes tokens: split_heads cuts the columns, then swaps two axes"
    swapped = "queries and keys are swapped: qkv gives the queries first, then the keys, then the values"
    mistakes = (
        (mixed, back, {}, tokens_mixed),
        (mixed, straight, {}, tokens_mixed),
        (right, straight, {}, "the heads are joined without a transpose, which mixes tokens: merge_heads swaps first"),
        ((right[1], right[0], right[2]), back, {}, swapped),
        (
            triples,
            back,
            {},
            "q, k and v are taken head by head: qkv gives all queries first, then all keys, all values",
        ),
        (right, back, {"is_causal": False}, "a token sees the future: without a mask, attention is to be causal"),
        (right, back, {"scale": columns**-0.5}, "the scores are divided by sqrt(D): K is the width of one head"),
    )
    for parts, merge, options, diagnosis in mistakes:
        wrong = merge(F.scaled_dot_product_attention(*parts, **{"is_causal": True} | options))
        require(not torch.allclose(joined, wrong, atol=1e-4), diagnosis)


def require_masks(function, module, x, joined):
    """A mask by which each token sees only itself must give it its own value; a mask may differ by row."""
    tokens, columns = x.shape[1:]
    values, itself = module.qkv(x)[..., 2 * columns :], torch.eye(tokens).bool()
    alone = function(module, x, mask=itself)
    require(not torch.allclose(alone, joined, atol=1e-5), "the mask is ignored: hand it on to causal_attention")
    require_close(alone, values, "a token that may see only itself has to get its own value: True means visible", 1e-4)
    by_row = torch.ones(tokens, tokens).tril().bool().repeat(len(x), 1, 1, 1)  # (B, 1, T, T)
    by_row[0] = itself
    expected = torch.cat((values[:1], joined[1:]))
    require_close(function(module, x, mask=by_row), expected, "a mask (B, 1, T, T) is not applied row by row", 1e-4)


def require_dropouts(function, module, x, joined, out):
    """`dropout` acts on the weights in training alone; `residual_dropout` comes last, after `out`."""
    module.dropout = 0.5
    same = "dropout acts although self.training is False: hand over 0.0 then"
    require_close(function(module, x), joined, same)
    module.training = True
    require(
        not torch.allclose(function(module, x), joined, atol=1e-5),
        "in training, dropout does not act on the weights: hand self.dropout to causal_attention",
    )
    module.dropout, module.training = 0.0, False
    module.out, module.residual_dropout = out, lambda result: 3 * result
    last = "self.residual_dropout has to act last, on what self.out gives"
    require_close(function(module, x), 3 * out(joined), last, 1e-4)
    module.out, module.residual_dropout = lambda joined: joined, lambda result: result


def require_extended_cache(function, module, x, joined):
    """Text that comes in two pieces, by a cache, must give what it gives in one."""
    calls: list = []

    def extend(layer, k, v):
        calls.append((layer, k, v))
        return tuple(torch.cat([call[part] for call in calls], dim=2) for part in (1, 2))

    old, new = x.shape[1] - 2, 2
    cache = SimpleNamespace(extend=extend)
    function(module, x[:, :old], cache, 7)
    require(calls, "the cache was not asked: with one, k, v = cache.extend(layer, k, v)")
    require(calls[0][0] == 7, "cache.extend has to be told the layer that was handed in")
    shape = (len(x), module.n_heads, old, x.shape[2] // module.n_heads)
    require_shape(calls[0][1], shape, "what cache.extend gets as keys")
    mask = torch.ones(new, old + new).tril(old).bool()
    require_close(
        function(module, x[:, old:], cache, 7, mask),
        joined[:, old:],
        "new tokens do not see the cached ones: attend to the keys and values that cache.extend returns",
        1e-4,
    )


def repeated_rows(batch: int, period: int) -> torch.Tensor:
    """(B, 1 + 2n): a start token, n different tokens in an order of the row's own, and the same n again."""
    order = torch.rand(batch, 30).argsort(dim=1)[:, :period] + 1  # (B, n)
    return torch.cat((torch.zeros(batch, 1, dtype=torch.long), order, order), dim=1)  # (B, T)


def looking_at(keys: list[int]) -> torch.Tensor:
    """The map (T, T) of a head whose query i gives all its weight to keys[i]."""
    return torch.nn.functional.one_hot(torch.tensor(keys), len(keys)).float()


@exercise(
    "3.11",
    hints=(
        "Which pairs (query, key) count? Mark them in a (B, T, T) tensor of True and False; the rest is a mean.",
        "`ids[:, :, None] == ids[:, None, :]` compares query i with key j; you want query i against the token before "
        "key j, and no key behind i.",
        "`followed = F.pad(same[:, :, :-1], (1, 0)).tril()`; sum weights * followed[:, None] over keys, rows and "
        "queries, and divide by `followed.any(dim=-1).sum()`.",
    ),
)
def induction_score(function):
    batch, heads, layers, period = distinct_sizes(4, low=3)
    tokens = 1 + 2 * period
    ids = repeated_rows(batch, period)
    rest = [0] * (period + 1)  # what the queries of the first copy look at: the start
    perfect = looking_at(rest + list(range(2, period + 2)))
    copies = looking_at(rest + list(range(1, period + 1)))

    def scores_of(weights, ids):
        return function(weights.expand(len(ids), heads, tokens, tokens).clone(), ids.clone())

    scores = scores_of(perfect, ids)
    require_shape(scores, (heads,), "the score of maps (B, H, T, T), one number for each head,")
    require(
        not torch.isclose(scores_of(copies, ids), torch.ones(heads)).all(),
        "a head that looks at the earlier copy of the token itself gets the full score: the key is the one AFTER it",
    )
    require(
        scores.max() < 1.001,
        f"a head that always looks right has the score {scores.max():.1f}, not 1: divide by the number of queries",
    )
    backwards = scores_of(perfect.transpose(0, 1), ids)
    require(
        not (backwards.min() > 0.5 and scores.max() < 0.5),
        "the weights are read the wrong way round: axis -2 is the query, which looks, and axis -1 the key",
    )
    require(
        not (scores.min() > 0.05 and scores.max() < 0.95),
        f"a head that always looks right has the score {scores.mean():.2f}, not 1: queries whose token appears for "
        "the first time have nothing to find, leave them out of the mean",
    )
    require_close(scores, torch.ones(heads), "a head that always looks right does not have the score 1")
    resting = scores_of(looking_at([0] * tokens), ids)
    require(
        (resting == 0).all(),
        "a head that always looks at the start gets a score: nothing stands before column 0; does roll bring the last "
        "column there?",
    )
    again = torch.cat((ids[:, :3], ids[:, 1:2], ids[:, 3:4], ids[:, 1:2]), dim=1)  # . a b a c a
    half = torch.zeros(6, 6)
    half[:, 0] = 1
    half[3], half[5] = 0.0, 0.0
    half[3, 2] = 1.0  # a b: the one follower of the first a
    half[5, 2], half[5, 4] = 0.3, 0.7  # two followers, of the first and of the second a
    both = function(half.expand(batch, heads, 6, 6).clone(), again)
    require_close(
        both,
        torch.ones(heads),
        "a token that has occurred twice has two followers: the weights on both count, not only on one of them",
    )
    mixed = ids.clone()
    mixed[0, period + 2 :] = torch.arange(40, 40 + period - 1)  # in row 0 only one token comes again
    lone = looking_at(rest + [2] + [0] * (period - 1))
    weights = torch.stack([lone, *[looking_at([0] * tokens)] * (batch - 1)])[:, None].expand(-1, heads, -1, -1)
    pooled = function(weights.clone(), mixed)
    require_close(
        pooled,
        torch.full((heads,), 1 / (1 + (batch - 1) * period)),
        "rows count alike, however many repeated tokens they have: take one mean over the queries of all rows",
    )
    maps = torch.rand(layers, batch, heads, tokens, tokens).tril()
    together = function(maps, ids)
    require_shape(together, (layers, heads), "the score of maps (L, B, H, T, T)")
    for layer in range(layers):
        require_close(together[layer], function(maps[layer], ids), "several layers at once differ from each alone")


def attention_case() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random q (B, Tq, K), k and v (B, Tk, K), all sizes different, and a mask (Tq, Tk) with a True in every row."""
    batch, width, queries, keys = sorted(distinct_sizes(4, high=7))
    q, k, v = (np.random.randn(batch, tokens, width) for tokens in (queries, keys, keys))
    mask = np.random.rand(queries, keys) > 0.4
    mask[:, 0], mask[0, 1:], mask[-1] = True, False, True
    return q, k, v, mask


@exercise(
    "3.12",
    hints=(
        "Notebooks 3.3 and 3.4 have every step; `k.swapaxes(-1, -2)` is NumPy's k.transpose(-2, -1).",
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
    "3.13",
    hints=(
        "The loops of notebook 3.7, section 6, say over which index each step sums: it stands inside a product.",
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
