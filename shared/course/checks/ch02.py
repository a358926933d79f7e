"""Checks of chapter 2: pairs, merges, encoding, the template, packing, batches, rotary positions, word vectors."""

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from shared.course.checks import distinct_sizes, exercise, require, require_close, require_shape
from shared.errors import CourseError
from shared.text.bpe import BPETokenizer, list_merges, train_bpe
from shared.text.bpe import merge_pair as merge
from shared.text.embeddings import rotary_table
from shared.text.loader import row_order
from shared.text.template import ASSISTANT, END, SPECIAL_TOKENS, USER


@exercise(
    "2.1",
    hints=(
        "For one word, which pairs are there? [5, 6, 7] has two: (5, 6) and (6, 7).",
        "Two loops: over the words with their counts (zip), and over the neighbours in each word (itertools.pairwise).",
        "Inside the inner loop: pair_counts[pair] += count, with a dictionary that starts at 0 (defaultdict(int)).",
    ),
)
def count_pairs(function):
    a, b, c, d = random.sample(range(300), 4)
    times, others = random.sample(range(3, 99), 2)

    once = function([[a, b, c]], [1])
    require(isinstance(once, dict), f"the result is a {type(once).__name__}, not a dictionary from pairs to counts")
    require((b, a) not in once, "the pairs are the wrong way round: the left token comes first")
    require((a, b) in once, f"[{a}, {b}, {c}] lacks its first pair {(a, b)}")
    require((b, c) in once, f"[{a}, {b}, {c}] lacks its last pair {(b, c)}: does the loop stop one too early?")

    two = function([[a, b], [c, d]], [1, 1])
    require((b, c) not in two, "a pair reaches from the end of one word into the next: words are separate")
    weighed = function([[a, b]], [times])[a, b]
    require(weighed != 1, f"a word that occurs {times} times counts only once: add its count")
    require(weighed == times, f"a word that occurs {times} times gives {weighed} for its pair")
    require(
        function([[a, b, a, b]], [1]).get((a, b)) == 2,
        f"{(a, b)} occurs twice in [{a}, {b}, {a}, {b}]: every place counts",
    )
    require(
        function([[a, b], [b, a], [a, b]], [times, 1, others]).get((a, b)) == times + others,
        "when two words hold the same pair, their counts must add up",
    )
    require(
        function([[a], [], [a, a, a]], [times, times, 2]) == {(a, a): 4}, "short words, or equal neighbours, go wrong"
    )


@exercise(
    "2.2",
    hints=(
        "Walk along the ids and write a new list. What must you know to decide about a token?",
        "When this token is the right half and the last one in the new list is the left half, the two become one.",
        "if token == right and merged and merged[-1] == left: merged[-1] = new_id, otherwise merged.append(token)",
    ),
)
def merge_pair(function):
    a, b, c, new = random.sample(range(300), 4)
    ids = [c, a, b, b, a, b, c]
    merged = function(ids, (a, b), new)
    require(merged is not None, "the result is None: is a `return` missing?")
    merged = list(merged)
    require(ids == [c, a, b, b, a, b, c], "the list that was handed in has been changed: build a new one")
    require(merged != [c, new, b, a, b, c], "only the first occurrence is merged: go on to the end")
    require(merged != [c, new, b, new], "the last token is lost when it belongs to no pair")
    require(new not in function([b, a, c], (a, b), new), "(2, 1) is not the pair (1, 2): the order counts")
    require(merged == [c, new, b, new, c], f"(1, 2) -> 9 in [3, 1, 2, 2, 1, 2, 3] must give [3, 9, 2, 9, 3], not "
            f"{[{a: 1, b: 2, c: 3, new: 9}.get(token, token) for token in merged]}")  # fmt: skip
    three = list(function([a, a, a], (a, a), new))
    require(three != [a, new], "[1, 1, 1] was merged from the right: the leftmost pair comes first")
    require(three.count(new) == 1, "in [1, 1, 1] a token was used for two merges: it can be used up only once")
    require(three == [new, a], "[1, 1, 1] with the pair (1, 1) must give [9, 1]")
    require(list(function([a, a, a, a], (a, a), new)) == [new, new], "[1, 1, 1, 1] with (1, 1) must give [9, 9]")
    require(list(function([], (a, b), new)) == [] and list(function([b], (a, b), new)) == [b], "short lists go wrong")


@exercise(
    "2.3",
    hints=(
        "Write down the parts of ` there`, and the rank of every junction that is a token. Which one is merged first?",
        "In a loop: options = [(rank, place), ...] of all junctions that are tokens; min(options) says where.",
        "parts[i : i + 2] = [parts[i] + parts[i + 1]], until none is left; then [ranks[part] for part in parts].",
    ),
)
def encode_bytes(function):
    def encode(word: bytes, ranks: dict[bytes, int]) -> list[int]:
        spelled = {rank: token for token, rank in ranks.items()}
        ids = function(word, ranks)
        require(ids is not None, "the result is None: is a `return` missing?")
        ids = list(ids)
        require(
            not any(isinstance(id, bytes) for id in ids), "the result holds bytes, not ids: look the parts up in ranks"
        )
        require(all(id in spelled for id in ids), "the result holds an id that is not in ranks")
        require(b"".join(spelled[id] for id in ids) == word, f"decoded, the ids of {word!r} are another text")
        return ids

    def parts(word: bytes, *tokens: bytes) -> list[bytes]:
        """What a word is cut into when these tokens have been learnt, in this order."""
        letters = [bytes([byte]) for byte in range(256)]
        return [
            [*letters, *tokens][id] for id in encode(word, {token: i for i, token in enumerate([*letters, *tokens])})
        ]

    require(parts(b"xyz", b"er") == [b"x", b"y", b"z"], "neighbours that make no token were merged")
    require(parts(b"er", b"er") == [b"er"], "`er` is a token, but nothing is merged")
    require(parts(b"erer", b"er") == [b"er", b"er"], "it stops too early: merge until no junction is a token")
    require(
        parts(b"bother", b"he", b"her", b"ther", b"th") != [b"b", b"o", b"th", b"e", b"r"],
        "it merges the first neighbours that it meets, not those of the lowest rank",
    )
    require(
        parts(b" there", b"er", b" t", b"he", b" the", b"her") != [b" the", b"r", b"e"],
        "it takes the longest token from the left; the lowest rank counts, which here is that of `er`",
    )
    require(parts(b"aaa", b"aa") == [b"aa", b"a"], "of equally low ranks the leftmost comes first: `aaa` is `aa`, `a`")

    texts = ["".join(random.choices("ab ", k=12)) for _ in range(12)]
    ranks = train_bpe({text: random.randrange(1, 9) for text in texts}, 25)
    for length in (0, 1, 2, 9, 30):
        word = "".join(random.choices("ab ", k=length)).encode()
        replayed = list(word)
        for left, right in list_merges(ranks):
            replayed = merge(replayed, (ranks[left], ranks[right]), ranks[left + right])
        require(encode(word, ranks) == replayed, f"{word!r}: replaying the merges of the training gives other ids")


@dataclass(frozen=True)
class Said:
    user: str
    assistant: str


@exercise(
    "2.4",
    hints=(
        "Who writes each token when you chat: you, the program, or the model? Only the model's tokens are True.",
        "A question is [False] * len(question). Of an answer, the first token, <|assistant|>, is False as well.",
        "is_response += [False] * (len(question) + 1) + [True] * (len(answer) - 1)",
    ),
)
def render_conversation(function):
    tokenizer = BPETokenizer.train("who had the lantern? Mira the fox. thank you. " * 3, 290, SPECIAL_TOKENS)
    user, assistant, end = (tokenizer.special_tokens[name] for name in (USER, ASSISTANT, END))
    talk = [Said("who had the lantern?", "Mira the fox."), Said("thank you <|end|>", "you had the lantern.")]

    result = function(tokenizer, talk)
    require(isinstance(result, tuple) and len(result) == 2, "return two things: the ids, and what is a response")
    ids, marks = list(result[0]), list(result[1])
    require(ids.count(assistant) > 0, f"there is no {ASSISTANT} in the row: which role has the answer?")
    require(ids.count(user) == ids.count(assistant) == 2, "not every question and answer of the conversation is there")
    require(ids.count(end) == 4, f"each of the four messages ends with one {END}")
    require(
        tokenizer.decode(ids) == "".join(f"{USER}{turn.user}{END}{ASSISTANT}{turn.assistant}{END}" for turn in talk),
        f"the row reads {tokenizer.decode(ids)[:60]!r}..., not question, answer, question, answer",
    )
    require(len(marks) == len(ids), f"{len(ids)} ids but {len(marks)} marks: one for each id")

    opens = [place for place, id in enumerate(ids) if id == assistant]
    closes = [next(at for at in range(place, len(ids)) if ids[at] == end) for place in opens]
    spoken = [at for start, stop in zip(opens, closes, strict=True) for at in range(start + 1, stop)]
    require(not all(marks), "everything is marked as a response: the questions are given")
    require(all(marks[at] for at in spoken), "words of the answer are not marked: these are what the model shall learn")
    require(not any(marks[at] for at in opens), f"{ASSISTANT} is marked, but the program writes it, not the model")
    require(
        all(marks[at] for at in closes), f"the {END} of the answer is not marked: the model would never learn to stop"
    )
    rest = set(range(len(ids))) - {*spoken, *closes}
    require(not any(marks[at] for at in rest), "a part of the question is marked as a response")
    empty = function(tokenizer, [])
    require((list(empty[0]), list(empty[1])) == ([], []), "a conversation without exchanges gives two empty lists")


def require_tightest(rows: list[list[int]], lengths: list[int], room: int) -> None:
    """When the items came in the order of falling length, each went where the least room remained."""
    row_of = {item: number for number, row in enumerate(rows) for item in row}
    gaps: dict[int, int] = {}  # of the rows that have been opened
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        row = row_of[item]
        enough = [gap for gap in gaps.values() if gap >= lengths[item]]
        require(row in gaps or not enough, "a new row is opened for an item that fits into an old one")
        require(
            row not in gaps or gaps[row] == min(enough),
            "an item is not in the tightest row: not the first that is large enough, but the one with the least room",
        )
        gaps[row] = gaps.get(row, room) - lengths[item]


@exercise(
    "2.5",
    hints=(
        "Keep, beside each row, how much room it has left. Which row does `the least that is still enough` mean?",
        "Visit the items by falling length: sorted(range(len(lengths)), key=lambda item: -lengths[item]).",
        "fitting = [row for row, gap in enumerate(gaps) if gap >= lengths[item]]; min(fitting, key=gaps.__getitem__).",
    ),
)
def plan_packing(function):
    def plan(lengths: list[int], room: int) -> list[list[int]]:
        rows = function(lengths, room)
        require(rows is not None, "the result is None: is a `return` missing?")
        rows = [list(row) for row in rows]
        items = [item for row in rows for item in row]
        require(
            all(item in range(len(lengths)) for item in items),
            "a row holds a number that is no item: rows list the numbers of the items, not their lengths",
        )
        require(len(set(items)) == len(items), "an item is packed twice")
        require(len(items) == len(lengths), f"{len(lengths) - len(items)} of {len(lengths)} items are in no row")
        require(all(rows), "there is a row without items")
        require(
            all(sum(lengths[item] for item in row) <= room for row in rows),
            f"a row holds more than its room of {room} tokens",
        )
        return rows

    require(plan([], 10) == [], "no items need no rows")
    require(plan([6, 4], 10) == [[0, 1]], "6 and 4 fill a row of 10 exactly, but they do not share one")
    require(
        len(plan([6, 5, 4, 3], 10)) == 2,
        "6, 5, 4 and 3 fit into two rows of 10: before it opens a row, does it look at all the others?",
    )
    require(
        len(plan([3, 4, 5, 6], 10)) == 2,
        "6, 5, 4, 3 need two rows of 10 and 3, 4, 5, 6 more: do you visit the items from the longest to the shortest?",
    )
    for _ in range(10):
        lengths, room = random.sample(range(10, 300), 40), 700  # all different, so that there is one order
        rows = plan(lengths, room)
        require(all(row == sorted(row) for row in rows), "the items of a row are not in ascending order")
        require_tightest(rows, lengths, room)
    try:
        function([3, 11], 10)
    except CourseError:
        return
    require(False, "an item of 11 tokens does not fit a row of 10: that must be a CourseError")


@exercise(
    "2.6",
    hints=(
        "The places of the endless list are step * B to step * B + B - 1. To which epoch does place p belong?",
        "np.divmod(places, n_rows) gives for every place its epoch and its place within the epoch.",
        "np.array([row_order(seed, int(epoch), n_rows)[place] for epoch, place in zip(epochs, within)])",
    ),
)
def rows_of_step(function):
    batch = random.randrange(4, 9)
    n_rows = 2 * batch + random.randrange(1, batch)  # so that batches straddle the epochs
    seed = random.randrange(1000)
    steps = range(3 * n_rows)
    batches = [function(step, batch, n_rows, seed) for step in steps]
    for rows in batches:
        require_shape(np.array(rows) if rows is not None else None, (batch,), "the batch")
    endless = np.concatenate(batches).astype(int)
    require(((endless >= 0) & (endless < n_rows)).all(), f"a row number is not among 0 to {n_rows - 1}")
    again = function(2, batch, n_rows, seed)
    require(np.array_equal(again, batches[2]), "asked twice for the same step, it gives different rows: use row_order")
    require(
        any(not np.array_equal(batches[0], rows) for rows in batches[1:]), "every step gets the same rows: use `step`"
    )

    epochs = [endless[epoch * n_rows : (epoch + 1) * n_rows] for epoch in range(3)]
    require(
        not np.array_equal(epochs[0], range(n_rows)), "the rows come in the order of the file: shuffle by row_order"
    )
    require(
        not np.array_equal(batches[1][: batch - 1], batches[0][1:]),
        "neighbouring steps overlap: a step begins B places after the one before",
    )
    require(sorted(epochs[0]) == list(range(n_rows)), "the first epoch does not give every row once")
    require(not np.array_equal(epochs[0], epochs[1]), "each epoch has the same order: give row_order the epoch")
    require(
        all(sorted(epoch) == list(range(n_rows)) for epoch in epochs),
        "a later epoch does not give every row once: a batch that begins in one epoch may end in the next",
    )
    other = np.concatenate([function(step, batch, n_rows, seed + 1) for step in steps])
    require(not np.array_equal(endless, other), "another seed gives the same rows")
    for epoch, rows in enumerate(epochs):
        require(
            np.array_equal(rows, row_order(seed, epoch, n_rows)),
            f"epoch {epoch} is not row_order(seed, {epoch}, n_rows)",
        )


@exercise(
    "2.7",
    hints=(
        "Cut the last axis in two halves: x.chunk(2, dim=-1). The first half holds every a, the second every b.",
        "Multiply whole halves by the tables: first * cos - second * sin is the new first half. They broadcast.",
        "torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)",
    ),
)
def apply_rotary(function):
    batch, heads, length, half = distinct_sizes(4, low=3)
    cos, sin = rotary_table(length, 2 * half)  # (T, K/2) each
    x = torch.randn(batch, heads, length, 2 * half)  # (B, H, T, K)
    before = x.clone()
    turned = function(x, cos, sin)
    require_shape(turned, x.shape, "the result")
    require(torch.equal(x, before), "the input has been changed: return a new tensor")
    require(not torch.equal(turned, x), "nothing is turned")
    start = turned[..., 0, :]  # (B, H, K)
    require(not torch.allclose(start, x[..., 0, :].roll(half, dims=-1)), "the two halves have changed places")
    require_close(start, x[..., 0, :], "position 0 has the angle 0 and must stay as it is")

    a = torch.zeros(length, 2 * half)
    a[:, 0] = 1  # the first of pair 0 at every position
    seen = function(a, cos, sin)  # (T, K)
    require(
        torch.allclose(seen[:, 1].abs(), torch.zeros(length), atol=1e-6),
        "number 0 was paired with its neighbour: its partner is number K/2",
    )
    require(not torch.allclose(seen[1, half], -sin[1, 0]), "it turns the other way round: look at the signs of sin")
    require_close(
        turned.norm(dim=-1),
        x.norm(dim=-1),
        "a vector has changed its length: a turn keeps it; are both terms of each half there?",
    )
    require_close(seen[:, 0], cos[:, 0], "a = 1, b = 0 must give a' = cos")
    require_close(seen[:, half], sin[:, 0], "a = 1, b = 0 must give b' = sin")

    q, k = torch.randn(2, 1, 2 * half).expand(2, length, 2 * half)  # (T, K) each: one vector at every position
    scores = function(q, cos, sin) @ function(k, cos, sin).T  # (T, T)
    require_close(
        scores[1:, 1:],
        scores[:-1, :-1],
        "scores of equal distance differ: every position needs its own row of the table",
        1e-4,
    )


@exercise(
    "2.8",
    hints=(
        "Lay all places that may be looked at into a grid, (T, 2 * window). Which cells must be crossed out?",
        "`places = np.arange(T)[:, None] + offsets`; a cell counts when its place exists and its row's reach allows it",
        "near = (abs(offsets) <= reach[:, None]) & (places >= 0) & (places < T); then np.nonzero(near), places[near]",
    ),
)
def skip_gram_pairs(function):
    tokens, first = random.randint(5, 9), random.randint(100, 900)
    sentence = first + np.random.permutation(tokens)  # ids unlike any place
    found = _pairs(function(sentence.copy(), 1, np.random.default_rng(0)))
    require(
        {number for pair in found for number in pair} <= set(sentence.tolist()),
        "the result holds numbers that are no ids of the sentence: return the words at the places, not the places",
    )
    place = {word: at for at, word in enumerate(sentence.tolist())}
    steps = [place[near] - place[centre] for centre, near in found]
    require(0 not in steps, "a word is paired with itself: two different places make a pair")
    require(tokens - 1 not in map(abs, steps), "the first word is paired with the last: place -1 counts from the end")
    require(-1 in steps, "no word has a neighbour on its left: look to both sides")
    require(1 in steps, "no word has a neighbour on its right: look to both sides")
    expected = set(pairwise(sentence.tolist()))
    expected |= {(b, a) for a, b in expected}
    require(len(set(found)) == len(found), "with window 1 and different words, some pair comes twice")
    require(set(found) == expected, f"with window 1, {tokens} words have {len(expected)} pairs, not {len(found)}")

    window, tokens = random.randint(3, 5), 3000
    places = np.arange(tokens)
    found = np.array(_pairs(function(places.copy(), window, np.random.default_rng(1))))  # (P, 2)
    centres, steps = found[:, 0], found[:, 1] - found[:, 0]  # (P,), (P,)
    require(abs(steps).max() <= window, f"a pair stands {abs(steps).max()} places apart, and the window is {window}")
    inner = (centres >= window) & (centres < tokens - window)  # places that see no edge
    left, right = (np.zeros(tokens, dtype=int) for _ in range(2))
    np.maximum.at(left, centres[inner], -steps[inner])
    np.maximum.at(right, centres[inner], steps[inner])
    reach = right[window : tokens - window]  # (T - 2 window,)
    require(reach.max() == window or reach.min() < reach.max(), f"all centres look {reach.max()} places far: draw anew "
            "for each centre")  # fmt: skip
    require(reach.min() < window, f"every centre looks {window} places far: draw 1 to {window} for each")
    require(reach.max() == window, f"nothing is ever paired at distance {window}: rng.integers leaves out its end")
    require(
        np.array_equal(left[window : tokens - window], reach),
        "a centre looks farther to one side than to the other: are centres and neighbours exchanged, or drawn twice?",
    )
    seen = np.bincount(abs(steps[inner]), minlength=window + 1)[1:] / (2 * len(reach))
    wanted = 1 - np.arange(window) / window
    require(abs(seen - wanted).max() < 0.05, f"distances 1 to {window} are seen in shares {seen.round(2).tolist()}, "
            f"not {wanted.round(2).tolist()}: are all reaches equally likely?")  # fmt: skip
    again = _pairs(function(places.copy(), window, np.random.default_rng(1)))
    require(sorted(again) == sorted(map(tuple, found.tolist())), "the same rng gives other pairs: draw from `rng` only")
    for short in (np.array([4]), np.array([], dtype=int)):
        require(_pairs(function(short, 2, np.random.default_rng(0))) == [], f"{len(short)} words have no pairs")


def _pairs(result) -> list[tuple[int, int]]:
    """What skip_gram_pairs returned, as a list of (centre, neighbour)."""
    require(result is not None, "the result is None: is a `return` missing?")
    require(isinstance(result, tuple) and len(result) == 2, "return two arrays: the centres, and their neighbours")
    centres, neighbours = (np.asarray(array) for array in result)
    require(centres.ndim == neighbours.ndim == 1, "centres and neighbours must have one axis each, (P,)")
    require(len(centres) == len(neighbours), f"{len(centres)} centres, but {len(neighbours)} neighbours")
    return list(zip(map(int, centres), map(int, neighbours), strict=True))


@exercise(
    "2.9",
    hints=(
        "For one pair: which N + 1 dot products are there, and what should the sigmoid say about each, 1 or 0?",
        "errors: sigmoid(score) - 1 for the neighbour, sigmoid(score) for noise. A gradient is error times the other "
        "vector; the centre has N + 1 of them.",
        "np.einsum('pd,pd->p', centre, near), np.einsum('pd,pnd->pn', centre, noise); the centre's noise part is "
        "np.einsum('pn,pnd->pd', errors, noise)",
    ),
)
def negative_sampling(function):
    width, n_noise, pairs = distinct_sizes(3, low=2, high=6)
    zeros = [np.zeros(shape) for shape in ((pairs, width), (pairs, width), (pairs, n_noise, width))]
    result = function(*(array.copy() for array in zeros))
    require(result is not None, "the result is None: is a `return` missing?")
    require(isinstance(result, tuple) and len(result) == 4, "return four things: the loss and three gradients")
    require(np.ndim(result[0]) == 0, f"the loss has shape {np.shape(result[0])}: sum it over all pairs")
    questions, loss = n_noise + 1, float(result[0]) / math.log(2)
    require(loss > 0, "the loss is negative: it is minus the logarithm")
    require(abs(loss - questions) > 1e-6, "the loss is the mean over the pairs: it must be their sum")
    require(abs(loss - pairs) > 1e-6, "the noise words are missing in the loss")
    require_close(loss, pairs * questions, f"when every score is 0, each of the {questions} questions of a pair costs "
                  "ln 2")  # fmt: skip
    for name, array, gradient in zip(("centre", "near", "noise"), zeros, result[1:], strict=True):
        require_shape(gradient, array.shape, f"the gradient for {name}")

    c, o, noise = np.array([[1.0, 2.0]]), np.array([[2.0, -1.0]]), np.array([[[math.log(3), 0.0]]])
    by_hand = float(function(c, o, noise)[0])
    require(abs(by_hand - math.log(8 / 3)) > 1e-6, "noise with a high score costs little: its answer should be no, so "
            "turn the sign of its score")  # fmt: skip
    require_close(by_hand, math.log(8), f"the example by hand gives the loss {by_hand:.4f}, not ln 8 = 2.0794")
    with np.errstate(all="ignore"):
        big = np.full((1, 2), 1e3)
        huge = function(big, -big, big[:, None])[0]
    require(np.isfinite(huge), "with huge scores the loss is infinite: ln(sigmoid(x)) rounds, use log_sigmoid(x)")

    arrays = [np.random.normal(size=array.shape) for array in zeros]
    kept = [array.copy() for array in arrays]
    _, *gradients = function(*arrays)
    require(all(map(np.array_equal, arrays, kept)), "an array that was handed in has been changed")
    slopes = [_slopes(function, kept, which) for which in range(3)]
    require(not all(np.allclose(g * pairs, s, atol=1e-5) for g, s in zip(gradients, slopes, strict=True)),
            "the gradients are divided by the number of pairs, and the loss is not")  # fmt: skip
    require(not all(np.allclose(g, -s, atol=1e-5) for g, s in zip(gradients, slopes, strict=True)),
            "the gradients point downhill: they must point where the loss grows")  # fmt: skip
    quiet = _slopes(function, [kept[0], kept[1], np.zeros_like(kept[2])], 0)
    require(not np.allclose(gradients[0], quiet, atol=1e-5), "the gradient for centre lacks what the noise adds to it")
    require_close(gradients[1], slopes[1], "the gradient for near is not how the loss changes when near is nudged: its "
                  "error is sigmoid(score) - 1, times the centre", 1e-5)  # fmt: skip
    require_close(gradients[2], slopes[2], "the gradient for noise is not how the loss changes when a noise word is "
                  "nudged: its error times the centre", 1e-5)  # fmt: skip
    require_close(gradients[0], slopes[0], "the gradient for centre is not how the loss changes when it is nudged: "
                  "add up error times vector over the neighbour and the noise", 1e-5)  # fmt: skip


def _slopes(function, arrays, which: int, step: float = 1e-5) -> np.ndarray:
    """How the loss changes with each number of one of the arrays, by central differences."""
    slopes = np.zeros_like(arrays[which])
    for place in np.ndindex(slopes.shape):
        losses = []
        for sign in (1, -1):
            moved = [array.copy() for array in arrays]
            moved[which][place] += sign * step
            losses.append(float(function(*moved)[0]))
        slopes[place] = (losses[0] - losses[1]) / (2 * step)
    return slopes
