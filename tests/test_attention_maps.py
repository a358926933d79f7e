"""shared/model/attention.py: what heads look at, read out of whole models, and the induction score."""

import math
import os
import threading

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from shared.errors import CourseError
from shared.model.attention import (
    AttentionRecorder,
    MultiHeadAttention,
    attention_maps,
    causal_attention,
    induction_score,
    padded_causal_mask,
    split_heads,
)
from shared.model.gpt import GPT, GPTConfig
from shared.model.huggingface import export_model
from shared.model.modern import RECIPES, ModernConfig, ModernGPT
from shared.text.bpe import BPETokenizer
from shared.text.template import SPECIAL_TOKENS

TOKENIZER = BPETokenizer.train("a fox and an owl", 260, SPECIAL_TOKENS)
SIZES = {"vocab_size": TOKENIZER.vocab_size, "context": 16, "n_layers": 3, "n_heads": 4, "width": 24}


def gpt():
    return GPT(GPTConfig(**SIZES, dropout=0.3))


def modern():
    return ModernGPT(ModernConfig(**SIZES, n_kv_heads=2))


def llama():
    return ModernGPT(ModernConfig(**SIZES, n_kv_heads=2, **RECIPES["llama"]))


def windowed():
    return ModernGPT(ModernConfig(**SIZES, **RECIPES["mistral"] | {"window": 5}))


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def scramble(model):
    """Weights large enough that no row of attention is flat."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


def what_modules_do(model, ids):
    """For every attention module: the values (B, H, T, K) that it made, and what went into `out`, (B, T, H*K)."""
    values, mixed, hooks = [], [], []
    for block in model.blocks:
        attention = block.attention
        heads = getattr(attention, "heads", [SIZES["n_heads"]] * 3)

        def keep_values(module, inputs, output, heads=heads):
            v = split_heads(output, sum(heads)).split(heads, dim=1)[2]  # (B, H_kv, T, K)
            values.append(v.repeat_interleave(heads[0] // heads[2], dim=1))

        hooks.append(attention.qkv.register_forward_hook(keep_values))
        hooks.append(attention.out.register_forward_pre_hook(lambda module, inputs: mixed.append(inputs[0])))
    with torch.no_grad():
        model.eval()(ids)
    for hook in hooks:
        hook.remove()
    return values, mixed


@pytest.mark.parametrize("make", [gpt, modern, windowed])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_maps_times_values_are_what_the_model_computed(make, dtype, tolerance):
    model, ids = scramble(make()).to(dtype), torch.randint(SIZES["vocab_size"], (5, 11))
    maps = attention_maps(model, ids)
    assert maps.shape == (3, 5, 4, 11, 11) and not maps.requires_grad
    assert torch.allclose(maps.sum(dim=-1), torch.ones(3, 5, 4, 11, dtype=dtype), atol=tolerance)
    assert not maps.triu(1).any() and maps.min() >= 0
    assert maps[:, :, :, 5:].max(dim=-1).values.std() > 0.05  # no flat rows
    for weights, v, mixed in zip(maps, *what_modules_do(model, ids), strict=True):
        assert torch.allclose((weights @ v).transpose(1, 2).flatten(2), mixed, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("make", [gpt, modern, llama, windowed])
def test_maps_equal_those_of_transformers(make, tmp_path):
    ours, ids = scramble(make()), torch.randint(SIZES["vocab_size"], (2, 11))
    export_model(ours, TOKENIZER, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = torch.stack(theirs(ids, output_attentions=True).attentions)  # (L, B, H, T, T)
    assert torch.allclose(attention_maps(ours, ids), expected, atol=1e-5)


@pytest.mark.parametrize("make", [gpt, modern])
def test_reading_maps_changes_nothing(make):
    model, ids = scramble(make()), torch.randint(SIZES["vocab_size"], (2, 7))
    model.train()
    attention_maps(model, ids)
    assert model.training and all(module.training for module in model.modules())
    with torch.no_grad():
        before = model.eval()(ids)
        with AttentionRecorder() as recorder:
            assert torch.equal(model(ids), before)
    assert len(recorder.maps) == 3 and not model.training


def test_a_mask_and_new_queries_are_heard():
    q, k, v = torch.randn(2, 6, 3, 4), torch.randn(2, 2, 8, 4), torch.randn(2, 2, 8, 4)  # 3 new of 8, shared keys
    mask = padded_causal_mask(3, 8, torch.tensor([0, 6]), torch.device("cpu"))  # (B, 1, Tq, Tk)
    with AttentionRecorder() as recorder:
        mixed = causal_attention(q, k, v, mask)
        last = causal_attention(q[:, :, -1:], k, v)  # one query, without a mask, sees everything
    weights, newest = recorder.maps
    assert weights.shape == (2, 6, 3, 8) and not weights.masked_select(~mask).any()
    v = v.repeat_interleave(3, dim=1)
    assert torch.allclose(weights @ v, mixed, atol=1e-5) and torch.allclose(newest @ v, last, atol=1e-5)


def test_other_threads_are_not_heard():
    model, ids = scramble(gpt()).eval(), torch.randint(SIZES["vocab_size"], (1, 5))

    def elsewhere():
        with torch.no_grad():
            model(ids)

    with AttentionRecorder() as recorder:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert recorder.maps == []


def test_a_model_without_attention_is_refused_and_left_as_it_was():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).train()
    with pytest.raises(CourseError, match="no attention was heard"):
        attention_maps(model, torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(IndexError):
        attention_maps(model, torch.full((1, 4), 9))
    assert model.training


def test_dropout_is_off_while_maps_are_read():
    attention = scramble(MultiHeadAttention(12, 3, dropout=0.5)).train()
    x = torch.randn(2, 6, 12)
    maps = attention_maps(attention, x)  # a single module will do
    assert torch.equal(maps, attention_maps(attention, x)) and attention.training


def score_by_loops(weights, ids):
    """The definition, one number at a time: weights (B, H, T, T) as lists, ids (B, T) as lists."""
    scores = []
    for head in range(len(weights[0])):
        given = []
        for b, row in enumerate(ids):
            for i, token in enumerate(row):
                keys = [j for j in range(i + 1) if j > 0 and row[j - 1] == token]
                if keys:
                    given.append(sum(weights[b][head][i][j] for j in keys))
        scores.append(sum(given) / len(given) if given else math.nan)
    return scores


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(1, 6), st.integers(0, 1000))
def test_induction_score_by_loops(batch, n_heads, tokens, vocab_size, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (batch, tokens), generator=generator)
    weights = torch.rand(2, batch, n_heads, tokens, tokens, generator=generator).double().tril()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    scores = induction_score(weights, ids)
    assert scores.shape == (2, n_heads)
    for layer in range(2):
        expected = torch.tensor(score_by_loops(weights[layer].tolist(), ids.tolist())).double()
        assert torch.allclose(scores[layer], expected, atol=1e-6, equal_nan=True)


def test_induction_score_of_heads_whose_score_is_known():
    ids = torch.tensor([[9, 1, 2, 3, 1, 2, 3]])
    looks_behind, looks_at_copy = torch.zeros(7, 7), torch.zeros(7, 7)
    for i in range(7):
        looks_behind[i, i - 2 if i > 3 else 0] = 1
        looks_at_copy[i, i - 3 if i > 3 else 0] = 1
    scores = induction_score(torch.stack((looks_behind, looks_at_copy))[None], ids)
    assert scores.tolist() == [1, 0]
    assert induction_score(torch.eye(4)[None, None], torch.arange(4)[None]).isnan().all()  # nothing repeats
