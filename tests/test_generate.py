"""shared/model/generate.py: filters, sampling, and decoding with and without a cache."""

import math
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shared.errors import CourseError
from shared.model.generate import (
    Sampling,
    apply_temperature,
    choose_tokens,
    direct_access,
    generate,
    logits_from_cache,
    logits_from_scratch,
    min_p_filter,
    open_window,
    penalise_repetition,
    sample,
    slide,
    stream,
    top_k_filter,
    top_p_filter,
    uniform_numbers,
)
from shared.model.gpt import GPT, GPTConfig
from shared.model.huggingface import gpt2_config, gpt2_weights
from shared.model.modern import ModernConfig, ModernGPT

V, CONTEXT = 29, 12


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def random_model(name):
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "context": CONTEXT, "n_layers": 2, "n_heads": 4, "width": 24}
    model = GPT(GPTConfig(**sizes)) if name == "gpt" else ModernGPT(ModernConfig(**sizes, n_kv_heads=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


MODELS = {name: random_model(name) for name in ("gpt", "modern")}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def test_filters_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert top_k_filter(logits, 2).exp()[0].tolist() == pytest.approx([0, 0.4, 0, 0.3])
    assert top_p_filter(logits, 0.69).exp()[0].tolist() == pytest.approx([0, 0.4, 0, 0.3])
    assert top_p_filter(logits, 0.71).exp()[0].tolist() == pytest.approx([0, 0.4, 0.2, 0.3])
    assert top_p_filter(logits, 1e-9).exp()[0].tolist() == pytest.approx([0, 0.4, 0, 0])
    assert torch.equal(top_p_filter(logits, 1.0), logits)
    assert min_p_filter(logits, 0.51).exp()[0].tolist() == pytest.approx([0, 0.4, 0, 0.3])
    assert min_p_filter(logits, 0.49).exp()[0].tolist() == pytest.approx([0, 0.4, 0.2, 0.3])
    assert torch.equal(min_p_filter(logits, 1e-9), logits)
    assert min_p_filter(torch.tensor([3.0, 5.0, 5.0]), 1.0).tolist() == [-math.inf, 5.0, 5.0]  # ties stay
    assert torch.equal(top_k_filter(logits, 99), logits)
    assert apply_temperature(logits, 0.5)[0].softmax(-1).tolist() == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0.05, 0.99), st.floats(0.2, 3.0))
def test_filters_equal_transformers(seed, k, p, temperature):
    logits = torch.randn(5, 43, generator=torch.Generator().manual_seed(seed)) * 2
    assert torch.equal(apply_temperature(logits, temperature), TemperatureLogitsWarper(temperature)(None, logits))
    assert torch.equal(top_k_filter(logits, k), TopKLogitsWarper(k)(None, logits))
    ours, theirs = top_p_filter(logits, p), TopPLogitsWarper(p)(None, logits)
    different = (ours != theirs).sum()  # a token whose cumulative probability rounds to p may fall on either side
    assert different <= 1
    ours, theirs = min_p_filter(logits, p), MinPLogitsWarper(p)(None, logits)
    assert (ours != theirs).sum() <= 1


def test_the_repetition_penalty_by_hand():
    logits = torch.tensor([[3.0, -2.0, 0.0, 3.0, -math.inf]])
    kept = logits.clone()
    assert penalise_repetition(logits, torch.tensor([[0, 1, 4, 0]]), 1.5).tolist() == [[2.0, -3.0, 0.0, 3.0, -math.inf]]
    assert torch.equal(logits, kept)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.3, 3.0))
def test_the_repetition_penalty_equals_transformers(seed, tokens, penalty):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 43, generator=generator) * 4
    ids = torch.randint(43, (5, tokens), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalise_repetition(logits, ids, penalty), expected)


def test_sample_finds_the_stretch_that_a_number_falls_in():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]])
    numbers = [0.0, 0.49, 0.5, 0.74, 0.76, 1 - 2**-53]
    tokens = sample(probabilities.expand(6, 6), torch.tensor(numbers, dtype=torch.float64))
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]


def test_uniform_numbers_are_a_function_of_seed_and_step():
    assert torch.equal(uniform_numbers(3, 5, 100), uniform_numbers(3, 5, 100))
    assert torch.equal(uniform_numbers(3, 5, 7), uniform_numbers(3, 5, 100)[:7])
    numbers = torch.stack([uniform_numbers(seed, step, 50) for seed in (-1, 0, 1, 2**32) for step in range(100)])
    assert numbers.unique().numel() == numbers.numel()
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.01)
    assert numbers[:, 0].var().item() == pytest.approx(1 / 12, rel=0.15)  # the first number of each step too


def test_rows_draw_independently_from_the_right_distribution():
    logits = torch.tensor([0.5, 0.1, 0.25, 0.15]).log().expand(20_000, 4)
    tokens = choose_tokens(logits, Sampling(), seed=1, step=0)
    shares = tokens.bincount(minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.5, 0.1, 0.25, 0.15], abs=0.015)
    same = (tokens[1:] == tokens[:-1]).float().mean().item()  # neighbouring rows agree as often as chance has it
    assert same == pytest.approx(0.5**2 + 0.1**2 + 0.25**2 + 0.15**2, abs=0.015)
    kept = choose_tokens(logits, Sampling(top_k=2), seed=1, step=0)
    assert set(kept.tolist()) == {0, 2}
    cold = choose_tokens(logits, Sampling(temperature=0.5), seed=1, step=0).bincount(minlength=4) / 20_000
    assert cold.tolist() == pytest.approx([0.725, 0.029, 0.181, 0.065], abs=0.015)


def continue_slowly(model, prompt, n):
    """Greedy decoding by its definition, one row, nothing remembered."""
    ids, visible = list(prompt), list(prompt)
    for _ in range(n):
        if len(visible) > model.config.context:
            visible = visible[-(model.config.context // 2) :]
        token = int(model(torch.tensor([visible]))[0, -1].argmax())
        ids.append(token)
        visible.append(token)
    return ids


@every_model
@pytest.mark.parametrize("length", [1, 5, CONTEXT])
def test_greedy_text_by_its_definition_with_and_without_a_cache(model, length):
    prompt = torch.randint(V, (1, length))
    n = 2 * CONTEXT + 5  # the context fills at least twice
    expected = continue_slowly(model, prompt[0].tolist(), n)
    assert generate(model, prompt, n, temperature=0).tolist() == [expected]
    assert generate(model, prompt, n, temperature=0, use_cache=False).tolist() == [expected]


@every_model
def test_unequal_prompts_come_out_as_they_would_alone(model):
    prompts = [torch.randint(V, (length,)).tolist() for length in (3, 1, CONTEXT, 7)]
    n = 2 * CONTEXT + 5
    batch = generate(model, prompts, n, temperature=0)
    assert batch.shape == (4, CONTEXT + n)
    assert torch.equal(batch, generate(model, prompts, n, temperature=0, use_cache=False))
    for row, prompt in zip(batch.tolist(), prompts, strict=True):
        assert row[CONTEXT - len(prompt) :] == continue_slowly(model, prompt, n)
        assert row[: CONTEXT - len(prompt)] == [0] * (CONTEXT - len(prompt))


@every_model
def test_unequal_prompts_with_a_penalty_come_out_as_they_would_alone(model):
    prompts = [torch.randint(V, (length,)).tolist() for length in (5, CONTEXT, 2)]
    options = {"temperature": 0, "repetition_penalty": 1.7}
    batch = generate(model, prompts, 2 * CONTEXT + 5, **options)
    assert not torch.equal(batch, generate(model, prompts, 2 * CONTEXT + 5, temperature=0))
    for row, prompt in zip(batch, prompts, strict=True):
        alone = generate(model, [prompt], 2 * CONTEXT + 5, **options)[0]
        assert torch.equal(row[CONTEXT - len(prompt) :], alone)


@every_model
def test_cached_logits_equal_uncached_at_every_position_across_refills(model):
    prompts = [torch.randint(V, (length,)).tolist() for length in (4, 1, 7)]
    n, refills = 2 * CONTEXT + 9, 0
    cached, plain = (open_window(prompts, n, model) for _ in range(2))
    with torch.no_grad():
        for _ in range(n):
            held = cached.cache
            for window in (cached, plain):
                slide(window, CONTEXT)
            refills += held is not None and cached.cache is None
            logits = logits_from_cache(model, cached)
            assert torch.allclose(logits, logits_from_scratch(model, plain), rtol=1e-4, atol=1e-4)
            tokens = torch.randint(V, (3,))  # whatever is written
            for window in (cached, plain):
                window.append(tokens)
    assert refills >= 2
    assert torch.equal(cached.ids, plain.ids)


@every_model
def test_greedy_is_deterministic(model):
    first = generate(model, [[1, 2], [3]], 2 * CONTEXT, temperature=0)
    for seed in (None, 0, 5):
        torch.manual_seed(seed or 99)
        again = generate(model, [[1, 2], [3]], 2 * CONTEXT, temperature=0, top_k=3, top_p=0.5, min_p=0.2, seed=seed)
        assert torch.equal(first, again)  # the filters never take the most likely token


def test_greedy_text_equals_that_of_transformers_with_and_without_a_penalty():
    model = MODELS["gpt"]
    fields = {
        key: value for key, value in gpt2_config(model.config).items() if key not in ("architectures", "model_type")
    }
    peer = GPT2LMHeadModel(GPT2Config(**fields, bos_token_id=None, eos_token_id=None)).eval()
    peer.load_state_dict(gpt2_weights(model), strict=False)  # the head, which is tied, is not in the weights
    prompts, texts = torch.randint(V, (6, 3)), []
    for penalty in (1.0, 1.2, 2.0):
        ours = generate(model, prompts, CONTEXT - 3, temperature=0, repetition_penalty=penalty)
        mask = torch.ones_like(prompts)
        theirs = peer.generate(
            prompts, attention_mask=mask, max_new_tokens=CONTEXT - 3, do_sample=False, repetition_penalty=penalty
        )
        assert torch.equal(ours, theirs)
        texts.append(ours)
    assert not torch.equal(texts[0], texts[1]) and not torch.equal(texts[1], texts[2])


@every_model
def test_sampling_is_the_same_with_and_without_a_cache(model):
    options = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 11}
    prompts = [[1, 2, 3], [4]]
    cached = generate(model, prompts, 30, **options)
    assert torch.equal(cached, generate(model, prompts, 30, use_cache=False, **options))
    assert not torch.equal(cached, generate(model, prompts, 30, **{**options, "seed": 12}))
    assert list(stream(model, [5, 6], 30, **options)) == generate(model, [[5, 6]], 30, **options)[0, 2:].tolist()


def test_rows_with_the_same_prompt_differ():
    rows = generate(MODELS["modern"], [[1]] * 50, 8, seed=0)
    assert rows.unique(dim=0).shape[0] > 40


def test_rows_that_stop_repeat_their_stop_token():
    model, stops = MODELS["gpt"], (3, 5, 8, 13, 21)
    prompts = [[3]] * 12  # a stop token in the prompt stops nothing
    free = generate(model, prompts, 40, seed=2)
    rows = generate(model, prompts, 40, seed=2, stop_tokens=stops)
    lengths = []
    for row, unstopped in zip(rows.tolist(), free.tolist(), strict=True):
        first = next(i for i in range(1, 41) if unstopped[i] in stops)
        assert row[: first + 1] == unstopped[: first + 1]
        assert set(row[first:]) == {unstopped[first]}
        lengths.append(first + 1)
    assert rows.shape[1] == max(lengths) < 41
    assert min(lengths) < max(lengths)


def test_stream_ends_with_the_stop_token():
    model = MODELS["modern"]
    tokens = list(stream(model, [1, 2], 20, seed=4))
    assert list(stream(model, [1, 2], 20, seed=4, stop_tokens=[tokens[6]])) == tokens[: tokens.index(tokens[6]) + 1]


def direct_names(model):
    """The parts and weights that are plain attributes of their modules just now."""
    return [name for part in model.modules() for name in (*part._parameters, *part._modules) if name in vars(part)]


@every_model
def test_direct_access_ends_with_the_text_however_that_ends(model):
    usual = model(torch.tensor([[1, 2]]))
    tokens = stream(model, [1, 2], 5, seed=0)
    next(tokens)
    assert {"blocks", "qkv", "weight"} <= set(direct_names(model))
    tokens_of_another = list(stream(model, [1, 2], 3, seed=0))  # it ends first, and takes the attributes with it
    assert [*tokens][:2] == tokens_of_another[1:]
    assert direct_names(model) == []
    assert torch.equal(model(torch.tensor([[1, 2]])), usual)
    with pytest.raises(RuntimeError, match="on purpose"), direct_access(model):
        assert direct_names(model)
        raise RuntimeError("on purpose")
    assert direct_names(model) == []


def test_a_part_that_is_replaced_while_a_text_is_written_is_used_at_once():
    model = random_model("gpt")
    tokens = stream(model, [1, 2], 3, temperature=0)
    next(tokens)

    class OnlyToken7(torch.nn.Module):
        def forward(self, x):
            return 1000 * model.token_embedding.weight[7].expand_as(x)

    with torch.no_grad():
        model.token_embedding.weight[7] = 3.0  # larger than all others: its own score is then the highest
    model.final_norm = OnlyToken7()
    assert list(tokens) == [7, 7] and direct_names(model) == []


def test_what_is_written_serves_in_training():
    model = random_model("gpt")
    ids = generate(model, [[1, 2, 3]], 4, seed=0)  # outside of inference mode again: an embedding may keep them
    model(ids).sum().backward()
    assert model.token_embedding.weight.grad.abs().sum() > 0


@every_model
def test_nothing_to_write_returns_the_prompt(model):
    for use_cache in (True, False):
        assert generate(model, [[1, 2], [3]], 0, use_cache=use_cache).tolist() == [[1, 2], [0, 3]]
    assert list(stream(model, [1], 0)) == []


@every_model
def test_settings_that_choose_nothing_change_nothing(model):
    free = generate(model, [[1]], 9, seed=0)
    for options in ({"top_k": V}, {"top_k": 10**6}, {"top_p": 1.0}, {"min_p": 1e-12}, {"repetition_penalty": 1.0}):
        assert torch.equal(generate(model, [[1]], 9, seed=0, **options), free)
    greedy = generate(model, [[1]], 9, temperature=0)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-42}):
        assert torch.equal(generate(model, [[1]], 9, seed=0, **options), greedy)


def test_a_context_of_one_token():
    model = GPT(GPTConfig(V, 1, 1, 1, 8))
    assert torch.equal(generate(model, [[4]], 6, seed=0), generate(model, [[4]], 6, seed=0, use_cache=False))


@every_model
def test_bad_input_is_refused(model):
    for prompts in ([], [[]], [[1], []], [[1] * (CONTEXT + 1)], [[V]], [[-1]], torch.zeros(1, 0, dtype=torch.long)):
        with pytest.raises(CourseError):
            generate(model, prompts, 3)
    with pytest.raises(CourseError, match="13 tokens"):
        stream(model, [1] * 13, 3)  # before the first token is asked for
    for options in (
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 0.0},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": math.nan},
    ):
        with pytest.raises(CourseError):
            generate(model, [[1]], 3, **options)
    with pytest.raises(CourseError, match="-1"):
        generate(model, [[1]], -1)


def test_the_model_and_the_global_generator_stay_as_they_were():
    model = GPT(GPTConfig(V, CONTEXT, 1, 2, 8, dropout=0.5)).train()
    state = torch.get_rng_state()
    first = generate(model, [[1]], 9, seed=0)
    assert model.training
    assert torch.equal(first, generate(model, [[1]], 9, seed=0))  # without dropout
    opened = stream(model, [1], 9, seed=0)
    next(opened)
    del opened
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    first += 1  # an ordinary tensor, not one of inference mode
    F.one_hot(first)
