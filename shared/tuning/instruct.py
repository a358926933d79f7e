"""Instruction tuning: the same model, the same loop, the same loss; only the data and the mask are new.

A conversation becomes one document, and its mask says which tokens are targets: those of the answers and the
<|end|> that closes each. The model reads the questions, but is never trained to ask them.
"""

from collections.abc import Sequence
from pathlib import Path

from shared.errors import CourseError
from shared.text.bpe import BPETokenizer
from shared.text.loader import write_shard
from shared.text.template import Exchange, render_conversation


def keep_what_fits(tokenizer: BPETokenizer, conversation: Sequence[Exchange], room: int) -> Sequence[Exchange]:
    """Return the longest beginning of a conversation that takes at most `room` tokens; () when none does.

    The end goes, not the beginning: a question about a story whose story is gone would teach the model to guess.
    """
    used = 0
    for kept, exchange in enumerate(conversation):
        used += len(render_conversation(tokenizer, [exchange])[0])
        if used > room:
            return conversation[:kept]
    return conversation


def mask_questions(
    tokenizer: BPETokenizer, conversations: Sequence[Sequence[Exchange]], room: int
) -> tuple[list[list[int]], list[list[bool]]]:
    """Return (documents, masks) of equal shape: the ids of each conversation, and which of them are targets.

    room: tokens a document may have. A conversation of which not even the first exchange fits is left out.
    """
    documents: list[list[int]] = []
    masks: list[list[bool]] = []
    for conversation in conversations:
        ids, is_response = render_conversation(tokenizer, keep_what_fits(tokenizer, conversation, room))
        if ids:
            documents.append(ids)
            masks.append(is_response)
    return documents, masks


def write_instruction_shard(
    directory: str | Path, tokenizer: BPETokenizer, conversations: Sequence[Sequence[Exchange]], context: int
) -> float:
    """Pack the conversations into a shard for the training loop; return the share of tokens that are targets.

    Raises CourseError when no conversation fits the context.
    """
    documents, masks = mask_questions(tokenizer, conversations, room=context + 1)
    if not documents:
        raise CourseError(f"no conversation fits a context of {context} tokens: pretrain with a longer context")
    write_shard(directory, documents, masks, context)
    return sum(map(sum, masks)) / sum(map(len, documents))
