"""shared/model/gpt.py: the same logits as transformers' GPT-2, causality, the cache, the initialisation."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig, count_parameters
from shared.model.huggingface import gpt2_config, gpt2_weights

CONFIG = GPTConfig(vocab_size=37, context=24, n_layers=3, n_heads=4, width=20)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def random_gpt(config=CONFIG, seed=0):
    """A model whose every tensor matters: biases and norms are random too."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    "config",
    [CONFIG, GPTConfig(11, 5, 1, 1, 6), GPTConfig(50, 40, 2, 8, 64), GPTConfig(29, 16, 5, 3, 12)],
    ids=str,
)
def test_logits_equal_transformers(config):
    model = random_gpt(config)
    fields = {key: value for key, value in gpt2_config(config).items() if key not in ("architectures", "model_type")}
    oracle = GPT2LMHeadModel(GPT2Config(**fields)).eval()
    missing, unexpected = oracle.load_state_dict(gpt2_weights(model), strict=False)
    assert missing == ["lm_head.weight"] and unexpected == []  # the head is the token embedding
    ids = torch.randint(config.vocab_size, (3, config.context))
    with torch.no_grad():
        logits, expected = model(ids), oracle(ids).logits
    assert logits.shape == (3, config.context, config.vocab_size)
    assert (logits - expected).abs().max() < 1e-4
    assert expected.std() > 0.1


@st.composite
def any_sizes(draw):
    """A config in which no two sizes need be equal, or may."""
    heads = draw(st.integers(1, 4))
    vocabulary, context, layers = draw(st.integers(1, 40)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    return GPTConfig(vocabulary, context, layers, heads, heads * draw(st.integers(1, 6)))


@settings(deadline=None, max_examples=20)
@given(any_sizes())
def test_logits_equal_transformers_in_double_precision(config):
    model = random_gpt(config).double()
    fields = {key: value for key, value in gpt2_config(config).items() if key not in ("architectures", "model_type")}
    oracle = GPT2LMHeadModel(GPT2Config(**fields, bos_token_id=None, eos_token_id=None)).double().eval()
    oracle.load_state_dict(gpt2_weights(model), strict=False)
    ids = torch.randint(config.vocab_size, (2, config.context))
    with torch.no_grad():
        assert (model(ids) - oracle(ids).logits).abs().max() < 1e-10


@settings(deadline=None, max_examples=40)
@given(any_sizes())
def test_parameters_counted_are_parameters_built(config):
    assert count_parameters(config) == sum(parameter.numel() for parameter in GPT(config).parameters())


@pytest.mark.parametrize(
    ("layers", "heads", "width", "published"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_the_published_sizes_of_gpt2(layers, heads, width, published):
    config = GPTConfig(50257, 1024, layers, heads, width)
    with torch.device("meta"):
        ours, theirs = GPT(config), GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, n_embd=width))
    assert sum(parameter.numel() for parameter in ours.parameters()) == published
    assert theirs.num_parameters() == count_parameters(config) == published


def test_no_token_sees_the_future():
    model, ids = random_gpt(), torch.randint(37, (1, 20))
    changed = ids.clone()
    changed[0, 13] = (ids[0, 13] + 1) % 37
    difference = (model(ids) - model(changed)).abs().amax(dim=-1)[0]
    assert (difference[:13] == 0).all()
    assert (difference[13:] > 1e-6).all()


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_cache_gives_the_same_logits_however_the_text_is_cut(pieces):
    model, total = random_gpt(), min(sum(pieces), CONFIG.context)
    ids, cache = torch.randint(37, (2, total)), model.new_cache()
    ends = [min(sum(pieces[: i + 1]), total) for i in range(len(pieces))]
    parts = [model(ids[:, start:end], cache) for start, end in pairwise([0, *ends]) if end > start]
    assert cache.length == total
    assert torch.allclose(torch.cat(parts, dim=1), model(ids), atol=1e-5)


def test_left_padding_changes_nothing():
    model, cache = random_gpt(), random_gpt().new_cache()
    long, short = torch.randint(37, (9,)), torch.randint(37, (4,))
    cache.starts = torch.tensor([0, 5])
    batch = torch.stack((long, F.pad(short, (5, 0), value=36)))
    logits = torch.cat((model(batch[:, :6], cache), model(batch[:, 6:8], cache), model(batch[:, 8:], cache)), dim=1)
    assert torch.allclose(logits[0], model(long[None])[0], atol=1e-5)
    assert torch.allclose(logits[1, 5:], model(short[None])[0], atol=1e-5)
    assert logits.isfinite().all()


def test_a_fresh_model_knows_nothing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(512, 32, 4, 4, 64))
    ids = torch.randint(512, (8, 33))
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.05)


def test_initialisation_is_gpt2s():
    model = GPT(GPTConfig(300, 200, 8, 4, 128))
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            residual = name.endswith(("out.weight", "down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05), name


def test_bf16_gradients_point_the_same_way():
    model, ids = random_gpt(seed=3), torch.randint(37, (4, 17))
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(ids[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_dropout_acts_in_training_only():
    model, ids = random_gpt(GPTConfig(37, 24, 2, 2, 16, dropout=0.3)), torch.randint(37, (2, 9))
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_bad_input_is_refused():
    model = random_gpt()
    with pytest.raises(CourseError, match="25 tokens do not fit in a context of 24"):
        model(torch.zeros(1, 25, dtype=torch.long))
    cache = model.new_cache(capacity=10)
    model(torch.zeros(1, 8, dtype=torch.long), cache)
    with pytest.raises(CourseError, match="8 \\+ 3 tokens"):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(CourseError, match="shape"):
        model(torch.zeros(5, dtype=torch.long))
    for sizes in ((0, 8, 1, 1, 4), (9, -1, 1, 1, 4), (9, 8, 1, 3, 4), (9, 8, 1.5, 1, 4), (9, 8, 1, 1, 4, 1.0)):
        with pytest.raises(CourseError):
            GPTConfig(*sizes)
