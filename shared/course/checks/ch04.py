"""Checks of chapter 4: norms, an activation, the block, the GPT, the next token; and two functions in NumPy."""

import math
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
    "4.7",
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
    "4.8",
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
    "4.9",
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
    "4.10",
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
