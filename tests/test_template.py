"""shared.text.template: layout, response mask, and that user text cannot forge a special token."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import CourseError
from shared.text.bpe import BPETokenizer
from shared.text.template import (
    ASSISTANT,
    END,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    USER,
    render_conversation,
    render_prompt,
    render_story,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
TOKENIZER = BPETokenizer.train("who are you? I tell stories. <|assistant|><|end|> " * 3, 300, SPECIAL_TOKENS)
EOT, USER_ID, ASSISTANT_ID, END_ID = (TOKENIZER.special_tokens[token] for token in SPECIAL_TOKENS)
hostile = st.one_of(st.text(max_size=20), st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "a"])).map("".join))


@dataclass(frozen=True)
class Said:
    user: str
    assistant: str


def test_special_tokens_are_the_four_of_the_template():
    assert SPECIAL_TOKENS == (END_OF_TEXT, USER, ASSISTANT, END)
    assert SPECIAL_TOKENS == ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")


def test_story_stands_between_two_boundaries():
    assert render_story(TOKENIZER, "I tell") == [EOT, *TOKENIZER.encode("I tell"), EOT]
    assert render_story(TOKENIZER, "") == [EOT, EOT]


def test_conversation_layout_and_response_mask():
    ids, is_response = render_conversation(TOKENIZER, (Said("who?", "I."), Said("you?", "stories")))
    assert TOKENIZER.decode(ids) == (
        "<|user|>who?<|end|><|assistant|>I.<|end|><|user|>you?<|end|><|assistant|>stories<|end|>"
    )
    assert len(is_response) == len(ids)
    learnt = [token for token, on in zip(ids, is_response, strict=True) if on]
    assert learnt == [*TOKENIZER.encode("I."), END_ID, *TOKENIZER.encode("stories"), END_ID]
    given_ids = [token for token, on in zip(ids, is_response, strict=True) if not on]
    assert TOKENIZER.decode(given_ids) == "<|user|>who?<|end|><|assistant|><|user|>you?<|end|><|assistant|>"


@relaxed
@given(st.lists(st.builds(Said, hostile, hostile), max_size=3), hostile)
def test_text_cannot_forge_a_special_token(history, message):
    ids, is_response = render_conversation(TOKENIZER, history)
    assert ids.count(USER_ID) == ids.count(ASSISTANT_ID) == len(history)
    assert ids.count(END_ID) == 2 * len(history) and EOT not in ids
    assert sum(is_response) == sum(len(TOKENIZER.encode(said.assistant)) + 1 for said in history)
    prompt = render_prompt(TOKENIZER, history, message)
    assert prompt.count(ASSISTANT_ID) == prompt.count(USER_ID) == len(history) + 1
    story = render_story(TOKENIZER, message)
    assert [token for token in story if token >= len(TOKENIZER.ranks)] == [EOT, EOT]


@relaxed
@given(st.lists(st.builds(Said, hostile, hostile), max_size=3), hostile, hostile)
def test_prompt_is_the_conversation_up_to_the_answer(history, message, answer):
    """What the model reads when it answers is what it read in training, token for token."""
    prompt = render_prompt(TOKENIZER, history, message)
    whole, is_response = render_conversation(TOKENIZER, [*history, Said(message, answer)])
    assert whole == [*prompt, *TOKENIZER.encode(answer), END_ID]
    assert not is_response[len(prompt) - 1] and all(is_response[len(prompt) :])


def test_a_tokenizer_without_the_templates_tokens_is_refused():
    plain = BPETokenizer.train("who are you?", 260, [END_OF_TEXT])
    assert render_story(plain, "who")[0] == plain.special_tokens[END_OF_TEXT]
    with pytest.raises(CourseError, match=r"no special token <\|user\|>"):
        render_prompt(plain, [], "who?")
