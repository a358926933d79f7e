"""Checks of chapter 3: scores, masks, weights, heads."""

import math

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
