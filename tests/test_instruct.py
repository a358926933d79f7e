"""Instruction tuning: what is a target, what is left out, and that the one loop learns from it."""

import math

import pytest
import torch

from shared.app.chat import Said
from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.text.bpe import BPETokenizer
from shared.text.loader import IGNORE_INDEX, Shard, get_batch
from shared.text.template import ASSISTANT, END, SPECIAL_TOKENS, USER, render_conversation
from shared.training.train import TrainConfig, next_token_loss, train
from shared.tuning.instruct import keep_what_fits, mask_questions, write_instruction_shard

TALKS = [
    [Said("Who has a lantern?", "Mira the fox."), Said("Which colour is it?", "It is red.")],
    [Said("Good day", "Hello, I tell stories.")],
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for talk in TALKS for said in talk for text in (said.user, said.assistant)]
    return BPETokenizer.train(texts, 290, SPECIAL_TOKENS)


def test_exactly_the_answers_and_their_end_tokens_are_targets(tokenizer):
    documents, masks = mask_questions(tokenizer, TALKS, room=500)
    assert [len(ids) for ids in documents] == [len(mask) for mask in masks]
    end = tokenizer.special_tokens[END]
    for talk, ids, mask in zip(TALKS, documents, masks, strict=True):
        learnt = [token for token, is_target in zip(ids, mask, strict=True) if is_target]
        assert learnt == [token for said in talk for token in [*tokenizer.encode(said.assistant), end]]


def test_the_model_is_asked_for_the_first_word_of_an_answer_right_after_the_assistant_token(tokenizer, tmp_path):
    share = write_instruction_shard(tmp_path, tokenizer, TALKS[:1], context=60)
    inputs, targets = get_batch(Shard.open(tmp_path), step=0, batch_size=1, seed=0)  # (1, 60) both
    (ids,), (mask,) = mask_questions(tokenizer, TALKS[:1], room=61)
    assert inputs[0, : len(ids)].tolist() == ids
    expected = [token if is_target else IGNORE_INDEX for token, is_target in zip(ids, mask, strict=True)][1:]
    assert targets[0, : len(ids) - 1].tolist() == expected
    after_role = inputs[0] == tokenizer.special_tokens[ASSISTANT]
    first_words = [tokenizer.encode(said.assistant)[0] for said in TALKS[0]]
    assert targets[0][after_role].tolist() == first_words
    assert tokenizer.special_tokens[USER] not in targets[0].tolist()
    assert share == pytest.approx(sum(mask) / len(mask)) and 0 < share < 1


def test_a_conversation_that_is_too_long_loses_its_last_exchanges(tokenizer):
    talk = TALKS[0]
    whole = len(render_conversation(tokenizer, talk)[0])
    first = len(render_conversation(tokenizer, talk[:1])[0])
    assert list(keep_what_fits(tokenizer, talk, whole)) == talk
    assert list(keep_what_fits(tokenizer, talk, whole - 1)) == talk[:1]
    assert list(keep_what_fits(tokenizer, talk, first)) == talk[:1]
    assert list(keep_what_fits(tokenizer, talk, first - 1)) == []
    documents, _ = mask_questions(tokenizer, TALKS, room=first)
    assert all(len(ids) <= first for ids in documents)


def test_a_context_that_holds_no_conversation_is_an_error(tokenizer, tmp_path):
    with pytest.raises(CourseError, match="context of 5 tokens"):
        write_instruction_shard(tmp_path, tokenizer, TALKS, context=5)


def test_questions_get_no_gradient_and_answers_are_learnt(tokenizer, tmp_path):
    write_instruction_shard(tmp_path, tokenizer, TALKS, context=60)
    shard = Shard.open(tmp_path)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context=60, n_layers=1, n_heads=2, width=32))
    inputs, targets = get_batch(shard, step=0, batch_size=shard.n_rows, seed=0)
    before, count = next_token_loss(model, (inputs, targets))
    assert count == sum(len(tokenizer.encode(said.assistant)) + 1 for talk in TALKS for said in talk)
    assert (before / count).item() == pytest.approx(math.log(tokenizer.vocab_size), rel=0.05)
    options = {"optimizer": "adamw", "learning_rate": 0.01, "warmup": 5, "decay": 20, "precision": "fp32"}
    train(model, shard, TrainConfig(steps=80, batch_size=shard.n_rows, **options))
    after, _ = next_token_loss(model, (inputs, targets))
    assert after / count < 0.3
    questions = targets.clone()
    questions[targets == IGNORE_INDEX] = inputs.roll(-1, dims=1)[targets == IGNORE_INDEX]
    questions[targets != IGNORE_INDEX] = IGNORE_INDEX
    unlearnt, n = next_token_loss(model, (inputs, questions))
    assert unlearnt / n > 2  # nobody trained it to ask
