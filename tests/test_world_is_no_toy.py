"""The world is worth a language model: counting neighbouring tokens is far from enough for it."""

import pytest

from shared.corpora.stories import World
from shared.text.bpe import BPETokenizer
from shared.text.template import END_OF_TEXT, SPECIAL_TOKENS, render_story
from shared.training.evaluate import NgramModel


@pytest.fixture(scope="module")
def trigram():
    """A trigram model of 12,000 stories, with its tokenizer and its world."""
    world = World.load()
    stories = world.stories(12_000, seed=0)
    tokenizer = BPETokenizer.train(stories[:2000], 2048, SPECIAL_TOKENS)
    return world, tokenizer, NgramModel.fit([render_story(tokenizer, text) for text in stories], tokenizer.vocab_size)


def test_a_trigram_model_stays_a_quarter_above_the_entropy(trigram):
    world, tokenizer, model = trigram
    told = list(world.tell(300, 0, "val"))
    documents = [render_story(tokenizer, story.text) for story in told]
    floor = -sum(story.log_p for story in told) / sum(len(document) - 1 for document in documents)
    assert model.loss(documents) > 1.25 * floor


def test_the_judge_rejects_nine_in_ten_of_a_trigram_models_stories(trigram):
    world, tokenizer, model = trigram
    start = tokenizer.special_tokens[END_OF_TEXT]
    texts = [tokenizer.decode(model.sample(start, start, 250, seed)[1:-1]) for seed in range(200)]
    assert all(END_OF_TEXT not in text and len(text) > 1 for text in texts)
    assert sum(map(world.accepts, texts)) < 0.1 * len(texts)
    assert len(set(texts)) > 190
