"""Checks of chapter 6: conversations that fit, answers that are targets, prompts, streams and intervals."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from shared.course.checks import distinct_sizes, exercise, require, require_close
from shared.errors import CourseError
from shared.text.bpe import BPETokenizer
from shared.text.template import ASSISTANT, END, SPECIAL_TOKENS, USER


@dataclass(frozen=True)
class Said:
    user: str
    assistant: str


@lru_cache
def byte_tokenizer() -> BPETokenizer:
    """Every byte is a token, so a message of n letters takes n + 2 tokens."""
    return BPETokenizer.train("Mira the fox", 256 + len(SPECIAL_TOKENS), SPECIAL_TOKENS)


def said(user: int, assistant: int) -> Said:
    """An exchange of two texts with so many letters; it takes user + assistant + 4 tokens."""
    return Said("".join(random.choices("abcdef", k=user)), "".join(random.choices("uvwxyz", k=assistant)))


def answer_tokens(conversation: list[Said]) -> list[int]:
    """What the model has to write, in order."""
    end = byte_tokenizer().special_tokens[END]
    return [token for exchange in conversation for token in [*exchange.assistant.encode(), end]]


@exercise(
    "6.1",
    hints=(
        "How many tokens do the first exchange, the first two, the first three take?",
        "Add up the lengths of the exchanges one by one; what do you return when the sum first exceeds the room?",
        "`enumerate` gives the number of exchanges before this one: `conversation[:kept]` holds just these.",
    ),
)
def keep_what_fits(function):
    tokenizer = byte_tokenizer()
    talk = [said(size, 3) for size in distinct_sizes(4)]
    lengths = [len(exchange.user) + 7 for exchange in talk]
    total = sum(lengths)
    whole = function(tokenizer, talk, total + 50)
    require(whole is not None, "nothing came back for a conversation that fits: is a `return` missing?")
    require(list(whole) == talk, "a conversation with room to spare must come back whole")
    exact = list(function(tokenizer, talk, total))
    require(exact == talk, "a conversation of exactly `room` tokens still fits: compare with >, not >=")
    shorter = list(function(tokenizer, talk, total - 1))
    require(
        shorter != talk, "with one token too many the conversation came back whole: do the template's tokens count?"
    )
    require(shorter != talk[1:], "the beginning was cut: the last exchange has to go, for later ones depend on earlier")
    require(len(shorter) < len(talk), "what came back is longer than the room")
    require(shorter == talk[:-1], "one exchange too many for the room: exactly the last one should go")
    gap = [said(4, 3), said(30, 3), said(4, 3)]
    kept = list(function(tokenizer, gap, 30))
    require(
        len(kept) < 2,
        "an exchange was left out in the middle and a later one kept: stop at the first that does not fit",
    )
    require(kept == gap[:1], "the first exchange fits and should stay")
    require(len(function(tokenizer, talk, lengths[0] - 1)) == 0, "not even the first exchange fits: keep none")


@exercise(
    "6.2",
    hints=(
        "Which function of the template already knows which tokens belong to a response?",
        "For each conversation: shorten it, render it, and keep both lists if there is anything in them.",
        "`render_conversation(tokenizer, keep_what_fits(tokenizer, conversation, room))` gives both; then `if ids:`.",
    ),
)
def mask_questions(function):
    tokenizer = byte_tokenizer()
    talks = [[said(5, 3), said(2, 4)], [said(3, 6)]]
    result = function(tokenizer, talks, 500)
    require(isinstance(result, tuple) and len(result) == 2, "return two lists: the documents and the masks")
    documents, masks = result
    require(len(documents) == 2, f"2 conversations that fit gave {len(documents)} documents")
    require(
        [len(ids) for ids in documents] == [len(mask) for mask in masks],
        "a document and its mask have different lengths: one bool for each token",
    )
    role, user = tokenizer.special_tokens[ASSISTANT], tokenizer.special_tokens[USER]
    for talk, ids, mask in zip(talks, documents, masks, strict=True):
        wanted = [token for token, is_target in zip(ids, mask, strict=True) if is_target]
        require(len(wanted) < len(ids), "every token is a target: the questions should not be")
        require(wanted[:1] != [user], "the questions are the targets: the mask is inverted")
        require(role not in wanted, "<|assistant|> is a target, but the template writes it, not the model")
        require(
            wanted.count(tokenizer.special_tokens[END]) == len(talk),
            "the <|end|> behind each answer has to be a target: without it the model never learns to stop",
        )
        require(wanted == answer_tokens(talk), "the targets are not the answers' tokens in their order")
    long, short = [said(40, 3)], [said(2, 3), said(30, 3)]
    documents, _ = function(tokenizer, [long, short], 20)
    require([] not in [list(ids) for ids in documents], "a conversation that does not fit became an empty document")
    require(all(len(ids) <= 20 for ids in documents), "a document has more tokens than the room: shorten it first")
    require(len(documents) == 1, "a long conversation whose first exchange fits should keep that exchange")


@exercise(
    "6.3",
    hints=(
        "Try the whole history first. What is the next longest prompt that begins with a whole exchange?",
        "`history[left_out:]` for left_out = 0, 1, ..., len(history); return at the first prompt that fits.",
        "The message alone is too long: `[ids[0], *ids[len(ids) - room + 1:]]` keeps the role token and the end.",
    ),
)
def fit_prompt(function):
    tokenizer = byte_tokenizer()
    user, role, end = (tokenizer.special_tokens[name] for name in (USER, ASSISTANT, END))
    history = [said(size, 3) for size in distinct_sizes(3)]
    lengths = [len(exchange.user) + 7 for exchange in history]
    message = "who?"
    frame = len(message) + 3
    whole = sum(lengths) + frame
    prompt = function(tokenizer, history, message, whole)
    require(hasattr(prompt, "ids"), "return a Prompt, which holds the ids and what had to go")
    require(len(prompt.ids) == whole, "history and message fit exactly, but something was left out or added")
    for left_out in range(1, 4):
        room = whole - sum(lengths[: left_out - 1]) - 1  # one token too few for the prompt before
        prompt = function(tokenizer, history, message, room)
        ids = list(prompt.ids)
        require(len(ids) <= room, f"a prompt of {len(ids)} tokens for a room of {room}")
        require(ids[0] == user, "the prompt begins in the middle of an exchange: leave out whole ones")
        require(
            ids[-2:] == [end, role], "the prompt does not end with <|end|><|assistant|>: the model would not answer"
        )
        newest = list(history[-1].user.encode())
        require(
            len(ids) == frame or ids[-frame - lengths[2] + 1 :][: len(newest)] == newest,
            "the newest exchange went first: leave out the oldest",
        )
        require(len(ids) == frame + sum(lengths[left_out:]), "more exchanges were left out than had to be")
        require(
            prompt.exchanges_left_out == left_out,
            f"{left_out} exchanges had to go, but the Prompt says {prompt.exchanges_left_out}",
        )
        require(prompt.tokens_cut == 0, "tokens_cut counts tokens of the message only, and here it is whole")
    long = "".join(random.choices("abcdef", k=30))
    prompt = function(tokenizer, history, long, 13)
    require(len(prompt.ids) <= 13, "a message that is too long by itself still gives a prompt longer than the room")
    require(prompt.ids[0] == user, "of a message that is cut, the <|user|> in front has to stay")
    require(
        list(prompt.ids[1:-2]) != list(long[:10].encode()),
        "the end of the message was cut: the question usually stands there",
    )
    require(
        list(prompt.ids[1:]) == [*long[-10:].encode(), end, role],
        "a cut message should keep as many of its last tokens as fit",
    )
    require(prompt.tokens_cut == 20, f"20 tokens of the message were cut, but the Prompt says {prompt.tokens_cut}")
    try:
        function(tokenizer, [], long, 3)
    except CourseError:
        return
    require(False, "a room of 3 tokens, all for the template, was accepted: raise a CourseError")


@exercise(
    "6.4",
    hints=(
        "Which object can remember the bytes that are not yet a character, and tell incomplete from impossible?",
        "Make one decoder before the loop, with `errors='replace'`; yield what it gives back unless that is empty.",
        "After the loop, `decoder.decode(b'', final=True)` gives what was still waiting.",
    ),
)
def decode_stream(function):
    tokenizer = byte_tokenizer()
    text = "Mira 🦊 café"
    taken = []

    def arriving():
        for token in text.encode():
            taken.append(token)
            yield token

    pieces = iter(function(tokenizer, arriving()))
    first = next(pieces)
    require(len(taken) < len(text.encode()), "the first piece came after the last id: yield while the ids arrive")
    pieces = [first, *pieces]
    require(
        "\ufffd" not in "".join(pieces),
        "a character of several bytes was cut up: keep its bytes back until it is whole",
    )
    require("" not in pieces, "an empty piece was yielded: while bytes are waiting there is nothing to show")
    require("".join(pieces) == text, "the pieces joined are not the text")
    broken = [*b"fox", 0xFF, *b" ran"]
    joined = "".join(function(tokenizer, broken))
    require(joined.endswith("ran"), "after a byte that is no text nothing more came: replace it by U+FFFD and go on")
    require("\ufffd" in joined, "a byte that is no text vanished: it should become U+FFFD")
    cut = "".join(function(tokenizer, "fox 🦊".encode()[:-2]))
    require(
        cut == "fox \ufffd", "bytes still waiting at the end should become U+FFFD: tell the decoder that it is the end"
    )


@exercise(
    "6.5",
    hints=(
        "Solve (share - p)^2 = z^2 p (1 - p) / n for p: it is a quadratic equation, and its roots are the ends.",
        "With s = z^2/n: the middle is (share + s/2) / (1 + s).",
        "Half the width is z / (1 + s) * sqrt(share (1 - share) / n + s / (4 n)): subtract and add it.",
    ),
)
def wilson_interval(function):
    unknown = function(0, 0)
    require(isinstance(unknown, tuple) and len(unknown) == 2, "return two numbers, the lower and the upper end")
    require(tuple(unknown) == (0.0, 1.0), "of no question at all nothing is known: return 0.0 and 1.0")
    n = random.randint(20, 40)
    low, high = function(n, n)
    require(high <= 1, f"an upper end of {high}: no share is above 1")
    require(low < 1, "all right of a few gives an interval without width: that is the naive interval")
    require(function(0, n)[0] >= 0, "a lower end below 0: no share is")
    for right in (n // 3, n // 2, n - 2):
        low, high = function(right, n)
        require(low < right / n < high, "the interval does not hold the share that was seen")
        share = right / n
        require(
            abs((low + high) / 2 - share) > 1e-9 or 2 * right == n,
            "the interval is centred on the share that was seen: its middle should move towards one half",
        )
        for p in (low, high):
            distance, deviation = abs(share - p), math.sqrt(p * (1 - p) / n)
            require(
                abs(distance / deviation - 1) > 0.02,
                "the ends lie one standard deviation away, not z = 1.96: is z missing?",
            )
            require_close(distance, 1.96 * deviation, "an end does not solve (share - p)^2 = z^2 p (1 - p) / n", 1e-6)
    narrow, wide = function(30, 60, 1.0), function(30, 60, 3.0)
    require(narrow[1] - narrow[0] < wide[1] - wide[0], "a larger z must give a wider interval: is z used?")
