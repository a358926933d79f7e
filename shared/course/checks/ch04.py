"""Checks of chapter 4: norms, an activation, the block, and the choice of the next token."""

import math
from types import SimpleNamespace

import torch

from shared.course.checks import distinct_sizes, exercise, require, require_close, require_shape


@exercise(
    "4.1",
    hints=(
        "Which axis holds the numbers of one vector? Both the mean and the variance are taken along it.",
        "`x.mean(dim=-1, keepdim=True)`; the variance is the mean of the squares of what is left.",
        "`centred * torch.rsqrt(variance + eps) * weight + bias`",
    ),
)
def layer_norm(function):
    batch, tokens, width = distinct_sizes(3, low=3)
    x, one, zero = 3 * torch.randn(batch, tokens, width) + 5, torch.ones(width), torch.zeros(width)
    plain = function(x.clone(), one, zero)
    require_shape(plain, x.shape, "the result")
    means = plain.mean(dim=-1)
    require(
        means.abs().max() < 1e-3,
        "the vectors' means are not 0: subtract from each vector its own mean, taken along dim=-1",
    )
    squares = plain.square().mean(dim=-1)
    require(
        not torch.allclose(squares, torch.full_like(squares, (width - 1) / width), atol=1e-3),
        "the variance is (D - 1)/D instead of 1: divide by D, not by D - 1 (torch's var and std divide by D - 1)",
    )
    require_close(
        squares,
        torch.ones_like(squares),
        "the vectors' variance is not 1: divide by the root of the variance, vector by vector",
        tolerance=1e-3,
    )
    weight, bias = torch.rand(width) + 0.5, torch.randn(width)
    scaled = function(x.clone(), weight, bias)
    require(not torch.allclose(scaled, plain), "weight and bias change nothing: are they used?")
    require(
        not torch.allclose(scaled, (plain + bias) * weight, atol=1e-4),
        "the bias is multiplied by the weight: scale first, then shift",
    )
    require_close(scaled, plain * weight + bias, "weight and bias are not applied column by column", tolerance=1e-4)
    flat = function(torch.ones(2, width), one, zero)
    require(not torch.isnan(flat).any(), "a vector of equal numbers gives nan: add eps to the variance")
    blurred = function(x.clone(), one, zero, 9.0)
    centred = x - x.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 9).sqrt()
    require_close(blurred, expected, "eps is to be added to the variance, under the root", tolerance=1e-4)


@exercise(
    "4.2",
    hints=(
        "Compute the inner sum z + 0.044715 z³ first, then go outwards.",
        "`torch.tanh` takes a tensor; the constant is `math.sqrt(2 / math.pi)`.",
        "`0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))`",
    ),
)
def gelu_tanh(function):
    z = 2 * torch.randn(*distinct_sizes(2))
    values = function(z.clone())
    require_shape(values, z.shape, "the result")
    far = function(torch.tensor([-8.0, 8.0]))
    require(abs(far[1] - 8) < 1e-3, "far to the right the result is not z: are the factors 0.5 and z both there?")
    require(abs(far[0]) < 1e-3, "far to the left the result is not 0: is the 1 in front of tanh there?")
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    sign = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * z))
    require(not torch.allclose(values, sign, atol=1e-5), "the cubic term is missing: z + 0.044715 z³ inside tanh")
    without = 0.5 * z * (1 + torch.tanh(z + 0.044715 * z**3))
    require(not torch.allclose(values, without, atol=1e-5), "the factor √(2/π) inside tanh is missing")
    exact = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    require(
        not torch.allclose(values, exact, atol=1e-6),
        "this is the exact GELU: GPT-2 uses the approximation by tanh, which differs by up to 0.0005",
    )
    # Written with the logistic function, 1 / (1 + exp(-2a)) = (1 + tanh(a)) / 2, it must be the same.
    require_close(values, z * torch.sigmoid(2 * inner), "the numbers are not those of the formula", tolerance=1e-5)


@exercise(
    "4.3",
    hints=(
        "There are two shortcuts. What is added to x in each, and what does the part read?",
        "The norm belongs inside: the part reads norm(x), the shortcut carries x itself.",
        "`x = x + self.attention(self.norm1(x), *context)`, and the same with norm2 and feed_forward, without context.",
    ),
)
def forward(function):
    # Parts of the form slope * x + offset: what comes out tells which of them was used, and in which order.
    received = []

    def attention(x, *context):
        received.append(context)
        return 3 * x

    block = SimpleNamespace(
        norm1=lambda x: 2 * x + 1, attention=attention, norm2=lambda x: 5 * x + 1, feed_forward=lambda x: 7 * x
    )
    x = torch.randn(*distinct_sizes(3))
    kept = x.clone()
    result = function(block, x, "cache", 4)
    require_shape(result, kept.shape, "the result")
    require(torch.equal(x, kept), "the x that was handed in has changed: write x = x + ..., not x += ...")
    require(received and all(context == ("cache", 4) for context in received), "attention did not get *context")
    mistakes = {
        (210, 112): "neither part has a shortcut: add what it gives to x",
        (245, 112): "feed-forward has no shortcut: add what it gives to x",
        (216, 115): "attention has no shortcut: add what it gives to x",
        (320, 168): "the shortcut carries the normed x: a norm must not stand in the stream, only before a part",
        (320, 41): "this is post-norm, norm(x + f(x)): put the norm before each part",
        (42, 10): "feed-forward reads the x from before attention: it comes after it",
    }
    for (slope, offset), diagnosis in mistakes.items():
        require(not torch.allclose(result, slope * kept + offset, rtol=1e-3), diagnosis)
    # x + 3 (2x + 1) = 7x + 3, and that plus 7 (5 (7x + 3) + 1)
    require_close(result, 252 * kept + 115, "norm1 belongs before attention and norm2 before feed-forward", 1e-3)


@exercise(
    "4.4",
    hints=(
        "The mean of the squares along the last axis, one number for each vector.",
        "Keep the axis, so that (..., D) times (..., 1) works: keepdim=True.",
        "`x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)`",
    ),
)
def rms_norm(function):
    batch, tokens, width = distinct_sizes(3, low=3)
    x = 3 * torch.randn(batch, tokens, width) + 2
    normed = function(x.clone())
    require_shape(normed, x.shape, "the result")
    require(
        normed.mean(dim=-1).abs().max() > 1e-3,
        "the vectors' means are 0: RMS norm subtracts nothing, only layer norm does",
    )
    squares = normed.square().mean(dim=-1)
    require(
        not torch.allclose(squares, torch.full_like(squares, 1 / width), atol=1e-4),
        "the vectors have length 1: divide by the root of the mean of the squares, not of their sum",
    )
    require(
        not torch.allclose(normed.square().mean(), torch.tensor(1.0), atol=1e-3)
        or torch.allclose(squares, torch.ones_like(squares), atol=1e-3),
        "only all vectors together have mean square 1: take the mean along the last axis",
    )
    require_close(squares, torch.ones_like(squares), "the mean of a vector's squares is not 1", tolerance=1e-3)
    require((normed * x >= 0).all(), "a sign has changed: dividing by a length keeps signs")
    zeros = function(torch.zeros(2, width))
    require(not torch.isnan(zeros).any(), "a vector of zeros gives nan: add eps under the root")
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 6.0).sqrt()
    require_close(function(x.clone(), 6.0), expected, "eps is to be added under the root", tolerance=1e-4)


@exercise(
    "4.5",
    hints=(
        "Which is the smallest logit that stays? Everything below it goes.",
        "`logits.topk(k, dim=-1).values` is sorted, largest first; take its last column, with its axis kept.",
        "`logits.masked_fill(logits < kth_largest, -math.inf)`, with k cut to `logits.shape[-1]` first.",
    ),
)
def top_k_filter(function):
    batch, vocabulary = 3, 8
    logits = torch.randn(batch, vocabulary) + torch.tensor([[0.0], [20.0], [-20.0]])
    kept = logits.clone()
    filtered = function(logits, 3)
    require_shape(filtered, (batch, vocabulary), "the result")
    require(torch.equal(logits, kept), "the logits that were handed in have changed: work on a copy")
    require(
        not (filtered == 0).any(),
        "logits that fall away are 0: that is a score like any other; -inf gives them probability 0",
    )
    stay = filtered.isfinite()
    require(
        stay.sum() != 3 or stay.any(dim=-1).sum() != 1,
        "one limit for the whole batch: every row keeps its own k largest",
    )
    counts = stay.sum(dim=-1).tolist()
    require(counts != [2] * batch, "one too few stays: the k-th largest belongs to the k")
    require(counts == [3] * batch, f"with k = 3 the rows keep {counts} logits: each must keep its own 3 largest")
    dropped_highest = torch.where(stay, -math.inf, kept).amax(dim=-1)
    require((filtered.amin(dim=-1) == -math.inf).all(), "what falls away is not -inf")
    kept_lowest = torch.where(stay, kept, math.inf).amin(dim=-1)
    require((kept_lowest > dropped_highest).all(), "the wrong ones stay: keep the largest")
    require(torch.equal(filtered[stay], kept[stay]), "a logit that stays has changed its value")
    require_shape(function(kept, 99), (batch, vocabulary), "the result for a k above V")
    require(torch.equal(function(kept, 99), kept), "a k above V must keep everything")
    tied = function(torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]]), 2)
    require(tied.isfinite().sum() == 4, "of logits that tie with the k-th, some were dropped: all of them stay")


@exercise(
    "4.6",
    hints=(
        "Sort first. For each token in the sorted order: what did the tokens before it hold together?",
        "`cumsum` minus the token's own probability is the sum before it. Drop where that already reaches p.",
        "Undo the sorting with `torch.empty_like(logits).scatter(-1, order, ordered)`.",
    ),
)
def top_p_filter(function):
    shares = torch.tensor([[0.1, 0.5, 0.05, 0.35], [0.3, 0.1, 0.4, 0.2]])
    logits = shares.log() + torch.tensor([[4.0], [-2.0]])  # not normalised
    kept = logits.clone()
    filtered = function(logits, 0.65)
    require_shape(filtered, (2, 4), "the result")
    require(torch.equal(logits, kept), "the logits that were handed in have changed: work on a copy")
    require(not (filtered == 0).any(), "what falls away is 0: that is a score like any other; -inf gives probability 0")
    stay = filtered.isfinite().tolist()
    right = [[False, True, False, True], [True, False, True, False]]
    ordered = [[True, True, False, False], [True, True, False, False]]
    require(stay != ordered, "the kept tokens stand in sorted order: bring them back to where they came from")
    require(
        stay != [[False, True, False, False], [False, False, True, False]],
        "the token that crosses p is missing: the set has to reach p, so compare with the sum before each token",
    )
    require(
        stay != [[True, False, True, False], [False, True, False, True]] and not stay[0][2],
        "unlikely tokens stay: sort with the largest first",
    )
    require(
        stay == right, "the kept tokens are not the smallest set that reaches p: are probabilities summed, row by row?"
    )
    mask = torch.tensor(right)
    require(torch.equal(filtered[mask], kept[mask]), "a logit that stays has changed its value or its place")
    small = function(kept, 0.01).isfinite().sum(dim=-1).tolist()
    require(small == [1, 1], f"with a tiny p the rows keep {small} tokens: the most likely one, alone, always stays")
    require(torch.equal(function(kept, 1.0), kept), "p = 1 must keep everything")
    cube = torch.randn(2, 3, 5)
    require_shape(function(cube, 0.5), (2, 3, 5), "the result for logits (2, 3, 5)")


@exercise(
    "4.7",
    hints=(
        "Where does each token's stretch end? A running sum tells.",
        "Scale the number by the row's total; then look for the first end that lies above it.",
        "`torch.searchsorted(ends, points, right=True)` wants points as a column (B, 1).",
    ),
)
def sample(function):
    row = torch.tensor([0.4, 0.25, 0.15, 0.2])
    points = torch.tensor([0.0, 0.39, 0.41, 0.64, 0.66, 0.79, 0.81, 0.999])
    tokens = function(row.expand(8, 4), points)
    require_shape(tokens, (8,), "the ids")
    require(not tokens.is_floating_point(), "the ids are not whole numbers")
    right = [0, 0, 1, 1, 2, 2, 3, 3]
    found = tokens.tolist()
    require(found != [0] * 8, "the most likely token comes out whatever the number: this is greedy")
    require(found != [min(id + 1, 4) for id in right], "every id is one too large: take the stretch in which it falls")
    require(
        found == right, f"the numbers 0, 0.39, 0.41, ... should give {right} for .4, .25, .15, .2; they give {found}"
    )
    scaled = function(5 * row.expand(8, 4), points).tolist()
    require(scaled == right, "probabilities that sum to 5 give other tokens: scale the number by the row's total")
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    own = function(rows, torch.tensor([0.5, 0.5])).tolist()
    require(own == [0, 2], "the rows do not use their own probabilities")
    edge = function(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0.0])).tolist()
    require(edge == [1], "the number 0 gives a token of probability 0: on a border, the next stretch begins")
