"""Checks of chapter 4: norms, an activation, the block, the GPT, the next token; and two functions in NumPy."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch

from shared.bare.gpt import BareConfig, BareGPT
from shared.bare.nn import IGNORE_INDEX
from shared.bare.tensor import Recording, backward, no_grad, numeric_gradient
from shared.bare.tensor import Tensor as BareTensor
from shared.course.checks import distinct_sizes, exercise, require, require_close, require_shape
from shared.errors import CourseError
from shared.model.attention import KVCache
from shared.model.gpt import GPT, GPTConfig


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
    "4.3",
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
    rough = z * torch.sigmoid(1.702 * z)
    require(not torch.allclose(values, rough, atol=1e-5), "this is z σ(1.702 z), a rougher approximation than GPT-2's")
    require(not torch.allclose(values, z * torch.sigmoid(z), atol=1e-5), "this is SiLU, z σ(z), and not GELU")
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
    "4.4",
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
    "4.5",
    hints=(
        "Follow the shapes: (B, T) -> (B, T, D) -> through the blocks -> (B, T, D) -> (B, T, V).",
        "Everything that the cache knows is asked before the blocks run; only then may `cache.length` move.",
        "`x = block(x, cache, layer, mask)` for each layer, then `F.linear(self.final_norm(x), ...weight)`; "
        "the mask is None without a cache, else `cache.mask(tokens, ids.device)`.",
    ),
)
def gpt_forward(function):
    batch, tokens, vocabulary, context, width = 2, 4, 11, 9, 6
    model, seen = rigged_gpt(vocabulary, context, width)
    ids = torch.randint(vocabulary, (batch, tokens))
    logits = function(model, ids)
    require(
        getattr(logits, "shape", ())[-1:] != (width,),
        "the result is the stream (B, T, D): compare it with every row of the token table for logits (B, T, V)",
    )
    require_shape(logits, (batch, tokens, vocabulary), "the logits")
    require(
        [rest[1:2] for _, rest, _ in seen] == [(0,), (1,), (2,)],
        "the blocks are to be called once each, in order, as block(x, cache, layer, mask), with layer 0, 1, 2, ...",
    )
    require_entry(model, ids, seen, torch.arange(tokens))
    # Block n makes (n + 2) x of its x: that tells whether its result was kept.
    for layer, ((before, _, _), (after, _, _)) in enumerate(pairwise(seen)):
        require_close(after, (layer + 2) * before, f"block {layer + 1} does not get what block {layer} returned")
    table, x = model.token_embedding.weight, 4 * seen[-1][0]
    require(not torch.allclose(logits, x @ table.T, rtol=1e-4), "the final norm is missing before the comparison")
    require_close(logits, (2 * x + 1) @ table.T, "the logits are not the normed stream times the token table", 1e-4)
    require(
        all(rest == (None, layer, None) for layer, (_, rest, _) in enumerate(seen)), "without a cache there is no mask"
    )
    require_cached_gpt(function, ids, vocabulary, context, width)
    model, _ = rigged_gpt(vocabulary, context, width)
    refused = "a text longer than the context was not refused by a CourseError: let check_length count the tokens"
    try:
        function(model, torch.zeros(1, context + 1, dtype=torch.long))
    except CourseError:
        return
    except (IndexError, RuntimeError):
        pass
    require(False, refused)


def rigged_gpt(vocabulary, context, width):
    """What GPT.forward needs of `self`, with parts that do easy sums, and a list of (x, what else, cache's length)."""
    seen = []

    def part(layer):
        def block(x, *rest):
            seen.append((x, rest, rest[0].length if rest and rest[0] is not None else 0))
            return (layer + 2) * x

        return block

    model = SimpleNamespace(
        config=SimpleNamespace(context=context),
        token_embedding=torch.nn.Embedding(vocabulary, width),
        position_embedding=torch.nn.Embedding(context, width),
        dropout=lambda x: 3 * x,
        blocks=[part(layer) for layer in range(3)],
        final_norm=lambda x: 2 * x + 1,
    )
    return model, seen


def require_entry(model, ids, seen, positions):
    """The first block must get dropout(token row + position row)."""
    words, places = model.token_embedding(ids), model.position_embedding(positions)
    x = seen[0][0]
    require(
        not torch.allclose(x, 3 * words, atol=1e-5) and not torch.allclose(x, words, atol=1e-5),
        "the tokens enter the blocks without a position: add position_embedding's rows",
    )
    require(not torch.allclose(x, words + places, atol=1e-5), "dropout is missing: it acts on the sum of the two rows")
    require_close(x, 3 * (words + places), "the first block does not get dropout(token row + position row)")


def require_cached_gpt(function, ids, vocabulary, context, width):
    """Three tokens are in the cache, four come; then a batch in which one row is padded."""
    tokens, before = ids.shape[1], 3
    model, seen = rigged_gpt(vocabulary, context, width)
    cache = KVCache(context)
    cache.length = before
    mask = cache.mask(tokens, ids.device)
    function(model, ids, cache)
    words = model.token_embedding(ids)
    early = 3 * (words + model.position_embedding(torch.arange(tokens)))
    require(
        not torch.allclose(seen[0][0], early, atol=1e-5),
        "with 3 tokens in the cache, the next ones stand at 3, 4, 5, ...: yours begin at 0 again",
    )
    require_entry(model, ids, seen, torch.arange(before, before + tokens))
    require(all(rest[0] is cache for _, rest, _ in seen), "a block did not get the cache")
    given = [rest[2] if len(rest) > 2 else None for _, rest, _ in seen]
    require(
        all(isinstance(one, torch.Tensor) and torch.equal(one, mask) for one in given),
        "with a cache, each block needs cache.mask(tokens, ids.device), asked for before cache.length moves",
    )
    require(all(length == before for _, _, length in seen), "cache.length moved before the last block was through")
    require(cache.length != before, "cache.length has stayed at 3: the new tokens would overwrite each other")
    require(cache.length == before + tokens, f"cache.length went from 3 to {cache.length} with {tokens} new tokens")
    model, seen = rigged_gpt(vocabulary, context, width)
    padded = KVCache(context)
    padded.starts = torch.tensor([0, 2])
    function(model, ids, padded)
    own = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])  # (B, T)
    require_close(
        seen[0][0],
        3 * (model.token_embedding(ids) + model.position_embedding(own)),
        "a row that is padded on the left counts from its own start: token_positions knows",
    )


@exercise(
    "4.6",
    hints=(
        "Make a list of the tensors in one block with their shapes: each weight is a matrix, and each has a bias.",
        "A block: qkv 3D² + 3D, out D² + D, up 4D² + 4D, down 4D² + D, and two norms of 2D each.",
        "(V + C) * D for the tables, plus L * (12 * D * D + 13 * D), plus 2 * D for the final norm.",
    ),
)
def count_parameters(function):
    heads, columns, layers = distinct_sizes(3, low=3)
    places, words, width = 101 + columns, 211 + layers, heads * columns
    config = GPTConfig(words, places, layers, heads, width)
    answer = function(config)
    require(
        isinstance(answer, int) and not isinstance(answer, bool),
        f"the result is of type {type(answer).__name__}: a count is a whole number (int)",
    )
    require(
        function(replace(config, n_heads=1)) == answer,
        "the count changes with the number of heads: heads share the width, they add no parameters",
    )
    deeper = function(replace(config, n_layers=layers + 1))
    require(deeper != answer, "the count is the same for one block more: every block has its own parameters")
    with torch.device("meta"):
        off = answer - sum(parameter.numel() for parameter in GPT(config).parameters())
    blocks = "a block is 4 norm vectors, 9D of biases and 12D² in matrices"
    reasons = {
        words * width: "V*D too many: the output layer is the token table again and counts once",
        -words * width: "V*D too few: the token table is missing (as table and output it counts once)",
        -places * width: "C*D too few: the table of positions is missing",
        -2 * width: "2D too few: the final norm, a weight and a bias, is missing",
        -width: "D too few: the final norm has a weight and a bias",
        -9 * width * layers: "9D too few in each block: the biases are missing (3D, D, 4D and D)",
        -5 * width * layers: "5D too few in each block: the biases of feed-forward, 4D and D, are missing",
        -4 * width * layers: "4D too few in each block: the two norms (2D each) or attention's biases (3D and D)",
        -2 * width * layers: "2D too few in each block: there are two norms, each with a weight and a bias",
        -width * (2 * layers + 1): "D too few for each norm: a norm has a weight and a bias",
        -4 * width**2 * layers: "4D² too few in each block: feed-forward is 8D², attention 4D²",
        -(width**2) * layers: "D² too few in each block: attention's out is a matrix too, beside qkv with 3D²",
        -2 * width**2 * layers: "2D² too few in each block: queries, keys and values have a matrix D² each",
    }
    require(off == 0, reasons.get(off, f"off by {off:+,} for {config}: go through it part by part; {blocks}"))


@exercise(
    "4.7",
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
    "4.8",
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
    "4.9",
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


@exercise(
    "4.10",
    hints=(
        "The limit differs from row to row: p times the row's own largest probability.",
        "Compare in logarithms: p_i ≥ p · p_max says that z_i is at least the row's largest logit plus ln p.",
        "`logits.masked_fill(logits < limit, -math.inf)`, with the limit as a column: `amax(dim=-1, keepdim=True)`.",
    ),
)
def min_p_filter(function):
    shares = torch.tensor([[0.1, 0.5, 0.05, 0.35], [0.3, 0.1, 0.4, 0.2]])
    logits = shares.log() + torch.tensor([[4.0], [-2.0]])  # not normalised
    kept, p = logits.clone(), 0.45
    filtered = function(logits, p)
    require_shape(filtered, (2, 4), "the result")
    require(torch.equal(logits, kept), "the logits that were handed in have changed: work on a copy")
    require(not (filtered == 0).any(), "what falls away is 0: that is a score like any other; -inf gives probability 0")
    stay = filtered.isfinite()
    require(
        not torch.equal(stay, shares >= p),
        "the limit is p itself: it is p times the largest probability, so that something always stays",
    )
    require(
        not torch.equal(stay, logits >= p * kept.amax(dim=-1, keepdim=True)),
        "p multiplies the largest logit: it is probabilities that are compared, and ln p is added to a logit",
    )
    require(
        not torch.equal(stay, shares >= p * shares.max()),
        "one limit for the whole batch: every row has its own largest probability",
    )
    require(not torch.equal(stay, shares < p * shares.amax(dim=-1, keepdim=True)), "the unlikely tokens stay: keep >=")
    right = torch.tensor([[False, True, False, True], [True, False, True, True]])
    require(
        torch.equal(stay, right), "the kept tokens are not those of at least p times their row's largest probability"
    )
    require(torch.equal(filtered[right], kept[right]), "a logit that stays has changed its value")
    tied = function(torch.tensor([[1.0, 3.0, 3.0]]), 1.0).isfinite().tolist()
    require(tied != [[False] * 3], "with p = 1 nothing is left: *at least* p times the largest, so it stays itself")
    require(tied == [[False, True, True]], "with p = 1, exactly the tokens stay that tie for the most likely")
    cube = torch.randn(2, 3, 5)
    require_shape(function(cube, 0.5), (2, 3, 5), "the result for logits (2, 3, 5)")


@exercise(
    "4.11",
    hints=(
        "Where do the new positions go? They begin at `self.length` and end at `self.length` + Tq.",
        "`if layer == len(self.keys):` this layer speaks for the first time; `k.new_empty(...)` sets room aside.",
        "`self.keys[layer][:, :, self.length : end] = k`, and return `self.keys[layer][:, :, :end]`; the same for v.",
    ),
)
def extend(function):
    batch, n_heads, head_width = distinct_sizes(3)
    cache = KVCache(capacity=12)
    said = [([], []), ([], [])]  # of each layer: all keys and all values so far
    for tokens in (4, 1, 3):
        for layer, (keys, values) in enumerate(said):
            k, v = torch.randn(2, batch, n_heads, tokens, head_width)
            keys.append(k)
            values.append(v)
            before = [id(store) for store in cache.keys]
            result = function(cache, layer, k.clone(), v.clone())
            require(
                isinstance(result, tuple) and len(result) == 2, "return two tensors: all keys, and all values, so far"
            )
            _require_extended(cache, layer, result, (keys, values))
            require(
                before == [id(store) for store in cache.keys][: len(before)],
                "the store has been built anew: set the room aside once, in a layer's first call, and write into it",
            )
        cache.length += tokens


def _require_extended(cache, layer, result, said):
    """One call of `extend` has stored the newest of what was said, and returned all of it."""
    tokens = said[0][-1].shape[2]
    before = sum(part.shape[2] for part in said[0]) - tokens
    require(
        cache.length == before, f"length went from {before} to {cache.length}: the model moves it, after all layers"
    )
    stores = [len(cache.keys), len(cache.values)]
    expected_stores = 2 if before else layer + 1  # two layers speak in turn
    require(stores == [expected_stores] * 2, f"after {expected_stores} layers there are {stores} stores: one for each")
    names = ("keys", "values")
    for name, tensor, parts in zip(names, result, said, strict=True):
        expected = torch.cat(parts, dim=2)  # (B, H, Tk, K)
        require(isinstance(tensor, torch.Tensor), f"the {name} that come back are no tensor")
        found = tuple(tensor.shape)
        wanted = tuple(expected.shape)
        require(
            found != (*wanted[:2], cache.capacity, wanted[3]),
            f"the whole capacity of {cache.capacity} comes back, with room that nobody has filled: stop at length + Tq",
        )
        require(
            not before or found != tuple(parts[-1].shape),
            f"only the {tokens} new {name} come back: the queries need those of all {before + tokens} positions",
        )
        require(found == wanted, f"the {name} have shape {found}, not {wanted}: (B, H, length + Tq, K)")
        news = tensor[:, :, before:]
        require(
            tokens == 1 or not torch.equal(news[:, :, 1:], parts[-1][:, :, :-1]),
            f"the new {name} stand one place too far: the first of them belongs to position `length`, counted from 0",
        )
        require(
            not before or torch.equal(tensor[:, :, :before], expected[:, :, :before]),
            f"earlier {name} have changed: write behind them, from position `length` on",
        )
        require(torch.equal(news, parts[-1]), f"the new {name} are not at positions length to length + Tq - 1")
    room = [cache.keys[layer].shape[2], cache.values[layer].shape[2]]
    require(
        room == [cache.capacity] * 2,
        f"there is room for {room} positions, not for {cache.capacity}: without it, every token copies all of it",
    )


@exercise(
    "4.12",
    hints=(
        "What distinguishes the tensors that are stored transposed: their shape, or where they stand in the model?",
        "The matrices whose name begins with `blocks.` are turned; the embeddings have two axes as well and are not.",
        '`tensor.T if name.startswith("blocks.") and tensor.ndim == 2 else tensor`',
    ),
)
def turn_matrix(function):
    width, vocab_size = distinct_sizes(2)
    wide = torch.randn(3 * width, width)
    turned = function("blocks.1.attention.qkv.weight", wide.clone())
    require_shape(turned, (width, 3 * width), "a matrix (outputs, inputs) of a block")
    require(
        torch.equal(turned, wide.T),
        "the shape is right, but the numbers are mixed up: reshape keeps their order, transposing swaps the axes",
    )
    square = torch.randn(width, width)
    require(
        torch.equal(function("blocks.0.attention.out.weight", square.clone()), square.T),
        "a square matrix stays as it was: its shape does not betray that it has to be turned, its name does",
    )
    for name in ("token_embedding.weight", "position_embedding.weight"):
        table = torch.randn(vocab_size, width)
        require(
            torch.equal(function(name, table.clone()), table),
            "an embedding is turned: both libraries store a row for each token",
        )
    for name in ("blocks.0.norm1.weight", "blocks.0.feed_forward.up.bias", "final_norm.bias"):
        vector = torch.randn(width)
        require(torch.equal(function(name, vector.clone()), vector), "a vector has changed: it has nothing to turn")
    back = function("blocks.1.attention.qkv.weight", function("blocks.1.attention.qkv.weight", wide.clone()))
    require(torch.equal(back, wide), "turning twice does not give the same matrix back")


@exercise(
    "4.13",
    hints=(
        "How far behind a query does a key lie? Which distances are allowed with a window of 3?",
        "Row i stands at position keys - queries + i; subtract a row of key positions from a column of those.",
        "With `distance` (Tq, Tk): `(distance >= 0) & (distance < window)`.",
    ),
)
def window_mask(function):
    window, queries, extra = sorted(distinct_sizes(3, low=3, high=9))
    keys = queries + extra
    mask = function(queries, keys, window)
    require(
        getattr(mask, "shape", ()) != (keys, queries),
        "rows and columns are exchanged: rows are queries, columns are keys",
    )
    require_shape(mask, (queries, keys), "the mask")
    require(mask.dtype == torch.bool, f"the mask is {mask.dtype}, not bool: True where a query may look")
    square = function(keys, keys, window)
    require(
        square[0].sum() <= 1 or square[-1].sum() > 1,
        "the mask is transposed: the first token sees those that follow, the last only itself; rows are queries",
    )
    require(square.diagonal().any(), "no token sees itself: the window counts it, and True means that it may look")
    require(
        square.triu(1).sum() == 0,
        "a token sees the future: a distance below the window is not enough, it must also not be negative",
    )
    require(square[-1].sum() != keys, "the last token sees everything: is the window used?")
    seen = int(square[-1].sum())
    require(seen != window + 1, "every token sees one too many: the window counts the token itself")
    require(seen != window - 1, "every token sees one too few: itself and the window - 1 before it make window tokens")
    require(square[-1, -window:].all(), f"with a window of {window}, the last token does not see the {window} newest")
    require(seen == window, f"with a window of {window}, the last token sees {seen} tokens")
    require(
        not torch.equal(mask, square[:queries]),
        f"{queries} new queries behind {extra} cached tokens look at the oldest keys: row i stands at Tk - Tq + i",
    )
    for row, position in enumerate(range(extra, keys)):
        visible = mask[row].nonzero().flatten().tolist()
        first = max(0, position - window + 1)
        require(
            visible == list(range(first, position + 1)),
            f"with {extra} cached tokens and a window of {window}, row {row} sees {visible}, not {first} to {position}",
        )
    require(
        function(1, keys, keys + 3, torch.device("cpu")).all(), "a window wider than the text hides nothing of the past"
    )


@exercise(
    "4.14",
    hints=(
        "Who asks, and who answers? The result has one vector for each place of x.",
        "`split_heads(self.q(x), self.n_heads)`; keys and values are the two halves of "
        "`split_heads(self.kv(memory), 2 * self.n_heads)`.",
        "`F.scaled_dot_product_attention(q, k, v, memory_mask[:, None, None, :])`, then merge_heads, then self.out.",
    ),
)
def cross_forward(function):
    heads, head_width, tokens, words, batch = distinct_sizes(5, low=3)
    width = heads * head_width
    module, twin = rigged_cross_attention(heads, width)
    require_sides(function, module, batch, tokens, width)
    x, memory = torch.randn(batch, tokens, width), torch.randn(batch, words, width)
    everything = torch.ones(batch, words, dtype=torch.bool)
    result = function(module, x, memory, everything)
    require_shape(result, x.shape, "the result")
    out, module.out = module.out, lambda joined: joined
    joined = function(module, x, memory, everything)
    require(
        not torch.allclose(result, joined, atol=1e-5),
        "the output projection is forgotten: without self.out each head can write to its own columns only",
    )
    require_close(result, out(joined), "self.out has to act on the merged heads, (B, T, D)", 1e-4)
    right = twin()(x, memory, memory)[0]
    apart = right.view(batch, tokens, heads, head_width).transpose(1, 2)  # (B, H, T, K)
    mistakes = (
        (apart.reshape(x.shape), "the heads are joined without a transpose, which mixes places: use merge_heads"),
        (twin(scale=head_width**0.5)(x, memory, memory)[0], "the scores are not divided by sqrt(K), K the head width"),
        (twin(scale=heads**-0.5)(x, memory, memory)[0], "the scores are divided by sqrt(D): a head has only K columns"),
        (twin(scale=head_width**-0.5)(x, memory, memory)[0], "the scores are divided by sqrt(K) twice"),
        (twin(swapped=True)(x, memory, memory)[0], "keys and values are swapped: kv gives the keys first"),
    )
    for wrong, diagnosis in mistakes:
        require(not torch.allclose(joined, wrong, atol=1e-4), diagnosis)
    require_close(joined, right, "with the same weights, torch.nn.MultiheadAttention gives other numbers", 1e-4)
    mask = torch.arange(words) < torch.randint(1, words, (batch, 1))  # (B, S)
    masked = function(module, x, memory, mask)
    require_close(masked, twin()(x, memory, memory, key_padding_mask=~mask)[0], "the mask is not the key's", 1e-4)


def rigged_cross_attention(heads, width):
    """What CrossAttention.forward needs of `self`, with random weights; and what makes its twin, without `out`."""
    q, kv, out = (torch.nn.Linear(width, columns).requires_grad_(False) for columns in (width, 2 * width, width))
    for layer in (q, kv):
        layer.weight.normal_(std=2 * width**-0.5)

    def twin(scale=1.0, swapped=False):
        other = torch.nn.MultiheadAttention(width, heads, batch_first=True).requires_grad_(False)
        halves = [torch.cat((kv.weight, kv.bias[:, None]), dim=1)[half] for half in (slice(width), slice(width, None))]
        joined = torch.cat((scale * torch.cat((q.weight, q.bias[:, None]), dim=1), *halves[:: -1 if swapped else 1]))
        other.in_proj_weight.copy_(joined[:, :-1])
        other.in_proj_bias.copy_(joined[:, -1])
        other.out_proj.weight.copy_(torch.eye(width))
        return other

    return SimpleNamespace(n_heads=heads, q=q, kv=kv, out=out), twin


def require_sides(function, module, batch, tokens, width):
    """Queries must be of x, keys and values of the memory, the mask the memory's: tried where both are equally long."""
    kv = torch.nn.Linear(width, 2 * width).requires_grad_(False)
    kv.bias.zero_()
    module = SimpleNamespace(n_heads=module.n_heads, q=module.q, kv=kv, out=lambda joined: joined)
    x, memory = torch.randn(batch, tokens, width), torch.randn(batch, tokens, width)
    everything = torch.ones(batch, tokens, dtype=torch.bool)
    joined = function(module, x, memory, everything)
    require(
        getattr(joined, "shape", ()) != x.shape or joined.nan_to_num().any(),
        "the real words are hidden: memory_mask is True where one may look, which is what the kernel wants",
    )
    require_shape(joined, x.shape, "the result")
    require(
        not torch.allclose(joined, function(module, x, torch.randn_like(memory), everything), atol=1e-5),
        "the memory is never read: keys and values come from the memory, only the queries from x",
    )
    order = torch.arange(tokens).roll(1)
    shuffled = function(module, x, memory[:, order], everything)
    require(
        not torch.allclose(shuffled, joined[:, order], atol=1e-4),
        "the queries come from the memory: the decoder asks, so they are self.q(x)",
    )
    blank = function(module, x, torch.zeros_like(memory), everything)
    require_close(blank, torch.zeros_like(x), "the values come from x: what the decoder gets is the memory's", 1e-4)
    late = memory.clone()
    late[:, -1] += 3
    require(
        not torch.allclose(function(module, x, late, everything)[:, 0], joined[:, 0], atol=1e-5),
        "the first place does not see the last source word: the source is read whole, no causal mask belongs here",
    )
    require_close(shuffled, joined, "the keys come from x: they belong to the values, and are the memory's", 1e-4)
    mask = torch.arange(tokens) < torch.arange(batch)[:, None] % (tokens - 1) + 1  # (B, T), at least one False a row
    masked = function(module, x, memory, mask)
    noisy = torch.where(mask[..., None], memory, memory + 3)
    heard = not torch.allclose(function(module, x, noisy, mask)[mask], masked[mask], atol=1e-5)
    empty = masked[~mask].isnan().all() or masked[~mask].abs().max() < 1e-6
    require(
        not (heard and empty),
        "the mask hides places of x: it tells about the memory, the last axis of the scores (B, H, T, S)",
    )
    require(not heard, "the padding is heard: memory_mask is ignored")


@exercise(
    "4.15",
    hints=(
        "Flatten to rows (N, V); find the rows that count; a row's loss is ln(sum of exp z) - z[target].",
        "Subtract each row's maximum first. A row's gradient is p, less 1 at the target, over how many rows count.",
        "`for_z = exponentials * (share / sums)[:, None]`, then `for_z[rows, columns] -= share[rows]`: share is 0 "
        "where nothing counts, and otherwise the arriving gradient divided by `len(rows)`.",
    ),
)
def cross_entropy(function):
    batch, tokens, vocab_size = distinct_sizes(3, low=3)
    targets = np.random.randint(0, vocab_size, (batch, tokens))
    level = function(BareTensor(np.zeros((batch, tokens, vocab_size))), targets)
    require(
        isinstance(level, BareTensor), f"the result is a {type(level).__name__}, not the tensor that `record` gives"
    )
    require_shape(level.data, (), "the loss")
    require_close(level.data, math.log(vocab_size), "equal logits must cost ln V: is it the mean of -ln p(target)?")
    targets[0, 0] = targets[1, 2] = IGNORE_INDEX
    counted = function(BareTensor(np.zeros((batch, tokens, vocab_size))), targets).item()
    share = (targets != IGNORE_INDEX).mean() * math.log(vocab_size)
    require(abs(counted - share) > 1e-6, "the sum is divided by all places: divide by those whose target counts")
    require_close(counted, math.log(vocab_size), "places with IGNORE_INDEX must not take part in the mean")
    with np.errstate(all="ignore"):
        huge = function(BareTensor(np.array([[1000.0, 0.0, 990.0]])), np.array([2])).item()
    require(
        abs(huge - 10) < 1e-3, f"a logit of 1000 gives a loss of {huge:g}, not 10: subtract the row's maximum first"
    )
    _cross_entropy_backward(function, np.random.randn(batch, tokens, vocab_size), targets)


def _cross_entropy_backward(function, z, targets):
    """The second half of the check: the gradient, first by its properties and then by central differences."""
    logits = BareTensor(z.copy(), requires_grad=True)
    loss = function(logits, targets)
    require(loss.requires_grad, "the loss has no way back to the logits: return what `record` gives")
    require(np.array_equal(logits.data, z), "the logits that were handed in have changed: work on a copy")
    backward(loss)
    require_shape(logits.grad, z.shape, "the gradient")
    ignored = targets == IGNORE_INDEX
    require(not logits.grad[ignored].any(), "places with IGNORE_INDEX receive a gradient: theirs is 0")
    sums = logits.grad.sum(axis=-1)  # (B, T)
    require(np.abs(sums).max() < 1e-8, "the gradient of a row does not sum to 0: it is p, less 1 at the target")
    tripled = BareTensor(z.copy(), requires_grad=True)
    backward(function(tripled, targets) * 3.0)
    require(
        np.allclose(tripled.grad, 3 * logits.grad),
        "three times the loss does not give three times the gradient: multiply by the gradient that arrives",
    )
    numeric = numeric_gradient(lambda a: function(BareTensor(a), targets).item(), [z.copy()], 1e-5)[0]
    require(
        not np.allclose(logits.grad, numeric * (~ignored).sum(), atol=1e-6),
        "the gradient is that of the sum and not of the mean: divide it by the number of targets that count",
    )
    require(np.allclose(logits.grad, numeric, atol=1e-6), "the gradient differs from central differences")


class Watched:
    """A GPT that notes how many columns it is asked to read, and whether it was being recorded."""

    def __init__(self, vocab_size, context):
        self.model = BareGPT(BareConfig(vocab_size, context, n_layers=2, n_heads=2, width=8), dtype=np.float64)
        for tensor in self.model.parameters().values():
            tensor.data += np.random.normal(0, 0.3, tensor.shape)
        self.config, self.new_cache = self.model.config, self.model.new_cache
        self.columns, self.recorded = [], False

    def __call__(self, ids, cache=None):
        self.columns.append(np.shape(ids)[1])
        self.recorded = self.recorded or Recording.on
        with no_grad():
            return self.model(ids, cache)

    forward = __call__


@exercise(
    "4.16",
    hints=(
        "Which columns has the model not read yet? That depends on `start` and on `cache.length`.",
        "Without a cache nothing has been read: 0. The logits for the next token stand at the last place.",
        "`model(ids[:, start + seen :], cache).data[:, -1]`, inside `with no_grad():`",
    ),
)
def next_logits(function):
    vocab_size, batch, tokens = 11, *sorted(distinct_sizes(2, low=3))
    model = Watched(vocab_size, context=20)
    ids = np.random.randint(0, vocab_size, (batch, tokens))
    result = function(model, ids, 0, None)
    require(not model.recorded, "the model is recorded for a backward pass: call it inside `with no_grad():`")
    require(not isinstance(result, BareTensor), "the result is a Tensor: hand over its array, `.data`")
    require(np.shape(result) != (batch, tokens, vocab_size), "the logits of all places come back: only the last counts")
    require_shape(result, (batch, vocab_size), "the result")
    read = model.columns[-1]
    require(read == tokens, f"without a cache the model has to read all {tokens} columns; it was given {read}")
    with no_grad():
        every_place = model.model(ids).data  # (B, T, V)
    require(not np.allclose(result, every_place[:, 0]), "these are the logits of the first place, not of the last")
    require(np.allclose(result, every_place[:, -1]), "these are not the logits of the last place")
    function(model, ids, 2, None)
    read = model.columns[-1]
    require(
        read == tokens - 2, f"with start=2 the model sees {tokens - 2} columns; it was given {read}: is start used?"
    )
    cache, step = model.new_cache(), np.random.randint(0, vocab_size, (batch, 1))
    function(model, ids, 1, cache)
    require(cache.length == tokens - 1, "the cache is empty after the first call: hand it to the model")
    longer = np.concatenate([ids, step], axis=1)  # (B, T + 1)
    cached = function(model, longer, 1, cache)
    read = model.columns[-1]
    require(read == 1, f"with all but one column in the cache, {read} were read again: leave out cache.length of them")
    with no_grad():
        expected = model.model(longer[:, 1:]).data[:, -1]  # (B, V)
    require_close(cached, expected, "with the cache the logits are not those without it")
