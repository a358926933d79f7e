"""The chat template: how stories and conversations become one row of token ids.

A model sees only ids. Four special tokens mark where a text begins and ends and who is speaking:

    a story          <|endoftext|> Once upon a time ... <|endoftext|>
    a conversation   <|user|> Who are you? <|end|> <|assistant|> I tell stories. <|end|> <|user|> ...

`encode` never produces a special token: whoever types "<|assistant|>" sends thirteen plain characters. Only the
functions below put special ids into a row, so nobody can speak in another's name.
"""

from collections.abc import Iterable
from typing import Protocol

from shared.errors import CourseError
from shared.text.bpe import BPETokenizer

END_OF_TEXT = "<|endoftext|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, USER, ASSISTANT, END)


class Exchange(Protocol):
    """One question and its answer: anything with these two texts will do."""

    @property
    def user(self) -> str: ...

    @property
    def assistant(self) -> str: ...


def special_id(tokenizer: BPETokenizer, token: str) -> int:
    """The id of a special token, or a CourseError where the tokenizer was trained without it."""
    if token not in tokenizer.special_tokens:
        raise CourseError(f"this tokenizer has no special token {token}: train it with {', '.join(SPECIAL_TOKENS)}")
    return tokenizer.special_tokens[token]


def render_story(tokenizer: BPETokenizer, text: str) -> list[int]:
    """The ids of a plain text between two <|endoftext|>: one to start from, one for the model to predict."""
    boundary = special_id(tokenizer, END_OF_TEXT)
    return [boundary, *tokenizer.encode(text), boundary]


def render_message(tokenizer: BPETokenizer, role: str, text: str) -> list[int]:
    """The ids of one message: the token of the role (USER or ASSISTANT), the text, <|end|>."""
    return [special_id(tokenizer, role), *tokenizer.encode(text), special_id(tokenizer, END)]


def render_conversation(tokenizer: BPETokenizer, conversation: Iterable[Exchange]) -> tuple[list[int], list[bool]]:
    """The ids of a whole conversation, and for each id whether it belongs to a response.

    A response is what the model must learn to write: the words of the answer and the <|end|> that closes it. The
    question and the role tokens are given to it, so they are no targets.
    """
    ids: list[int] = []
    is_response: list[bool] = []
    for exchange in conversation:
        question = render_message(tokenizer, USER, exchange.user)
        answer = render_message(tokenizer, ASSISTANT, exchange.assistant)
        ids += question + answer
        # <|assistant|> opens the answer but is put there by the template, not by the model
        is_response += [False] * (len(question) + 1) + [True] * (len(answer) - 1)
    return ids, is_response


def render_prompt(tokenizer: BPETokenizer, history: Iterable[Exchange], message: str) -> list[int]:
    """The ids that ask for an answer to `message`: the finished exchanges, the message, and an open <|assistant|>."""
    past, _ = render_conversation(tokenizer, history)
    return [*past, *render_message(tokenizer, USER, message), special_id(tokenizer, ASSISTANT)]
