"""shared/model/modern.py: the same logits as the stock classes, parts by name, initialisation, the cache."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from shared.errors import CourseError
from shared.model.huggingface import modern_config, modern_weights
from shared.model.modern import FEED_FORWARDS, NORMS, RECIPES, ModernConfig, ModernGPT, soft_cap, visible_keys

SIZES = {"vocab_size": 41, "context": 22, "n_layers": 3, "n_heads": 6, "width": 36}
EVERY_PART = [
    {"norm": norm, "feed_forward": feed_forward, "qk_norm": qk_norm, "norm_embedding": norm_embedding}
    for norm, feed_forward, qk_norm, norm_embedding in itertools.product(NORMS, FEED_FORWARDS, *[(True, False)] * 2)
]


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def random_modern(seed=0, **options):
    """A model whose every tensor matters."""
    torch.manual_seed(seed)
    model = ModernGPT(ModernConfig(**{**SIZES, **options})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


RECIPES_TO_TEST = RECIPES | {"mistral": RECIPES["mistral"] | {"window": 6}}  # the context is 22
SHARED_OPTIONS = [
    {},
    {"n_kv_heads": 2, "tied": True, "rotary_base": 300.0},
    {"n_kv_heads": 1, "hidden": 50, "n_layers": 1},
    {"n_kv_heads": 3, "head_width": 10},
]
SOFT_CAPPED = {"softcap": 4.0, "n_heads": 3}  # which only the NanoChat class has


@pytest.mark.parametrize(
    ("recipe", "options"), [*itertools.product(RECIPES_TO_TEST, SHARED_OPTIONS), ("nanochat", SOFT_CAPPED)], ids=str
)
def test_logits_equal_transformers(recipe, options):
    model = random_modern(**RECIPES_TO_TEST[recipe], **options)
    fields = modern_config(model.config)
    oracle = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    assert type(oracle).__name__ == fields["architectures"][0]
    missing, unexpected = oracle.load_state_dict(modern_weights(model), strict=False)
    assert missing == (["lm_head.weight"] if model.config.tied else []) and unexpected == []
    ids = torch.randint(41, (3, 22))
    with torch.no_grad():
        logits, expected = model(ids), oracle(ids).logits
    assert logits.shape == (3, 22, 41)
    assert (logits - expected).abs().max() < 1e-4
    assert expected.std() > 0.1


@pytest.mark.parametrize("parts", EVERY_PART, ids=str)
def test_any_parts_are_causal_and_agree_with_their_cache(parts):
    model, ids = random_modern(n_kv_heads=3, **parts), torch.randint(41, (2, 20))
    logits, cache = model(ids), model.new_cache()
    pieces = [model(piece, cache) for piece in ids.split([7, 1, 11, 1], dim=1)]
    assert torch.allclose(torch.cat(pieces, dim=1), logits, atol=1e-4)
    changed = ids.clone()
    changed[:, 13] = (ids[:, 13] + 1) % 41
    difference = (model(changed) - logits).abs().amax(dim=(0, 2))
    assert (difference[:13] == 0).all()
    assert (difference[13:] > 1e-6).all()


def test_left_padding_changes_nothing():
    model = random_modern(n_kv_heads=2)
    cache, long, short = model.new_cache(), torch.randint(41, (9,)), torch.randint(41, (4,))
    cache.starts = torch.tensor([0, 5])
    batch = torch.stack((long, F.pad(short, (5, 0), value=40)))
    logits = torch.cat((model(batch[:, :6], cache), model(batch[:, 6:8], cache), model(batch[:, 8:], cache)), dim=1)
    assert torch.allclose(logits[0], model(long[None])[0], atol=1e-4)
    assert torch.allclose(logits[1, 5:], model(short[None])[0], atol=1e-4)
    assert logits.isfinite().all()


@pytest.mark.parametrize("window", [1, 3, 21])
def test_a_window_equals_transformers_and_its_own_cache(window):
    model = random_modern(**RECIPES["llama"], window=window, n_kv_heads=2)
    oracle = AutoModelForCausalLM.from_config(AutoConfig.for_model(**modern_config(model.config))).eval()
    oracle.load_state_dict(modern_weights(model))
    ids, cache = torch.randint(41, (2, 22)), model.new_cache()
    with torch.no_grad():
        expected = oracle(ids).logits
        pieces = [model(piece, cache) for piece in ids.split([2, 7, 1, 11, 1], dim=1)]
    assert (model(ids) - expected).abs().max() < 1e-4
    assert (torch.cat(pieces, dim=1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("window", "n_layers"), [(1, 3), (4, 1), (4, 3), (30, 2)])
def test_a_window_reaches_one_step_further_with_every_layer(window, n_layers):
    model, ids = random_modern(window=window, n_layers=n_layers), torch.randint(41, (2, 22))
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 41
    moved = (model(changed) - model(ids)).abs().amax(dim=(0, 2))  # (T,)
    last = min(21, 5 + n_layers * (window - 1))
    assert (moved[:5] == 0).all() and (moved[last + 1 :] == 0).all()
    assert (moved[5 : last + 1] > 0).all()


def test_a_window_does_not_see_padding():
    model = random_modern(window=4, n_kv_heads=2)
    cache, long, short = model.new_cache(), torch.randint(41, (11,)), torch.randint(41, (6,))
    cache.starts = torch.tensor([0, 5])
    batch = torch.stack((long, F.pad(short, (5, 0), value=40)))
    logits = torch.cat([model(piece, cache) for piece in batch.split([7, 1, 3], dim=1)], dim=1)
    assert torch.allclose(logits[0], model(long[None])[0], atol=1e-4)
    assert torch.allclose(logits[1, 5:], model(short[None])[0], atol=1e-4)
    assert logits.isfinite().all()


def test_a_window_that_covers_the_context_changes_no_bit():
    everything, narrow = random_modern(), random_modern(window=22)
    ids, caches = torch.randint(41, (2, 22)), (everything.new_cache(), narrow.new_cache())
    assert torch.equal(everything(ids), narrow(ids))
    assert visible_keys(22, None, 22, torch.device("cpu")) is None  # the fast path: no mask is built
    for piece in ids.split([4, 1, 17], dim=1):
        assert torch.equal(everything(piece, caches[0]), narrow(piece, caches[1]))


def test_every_block_begins_as_the_identity_and_soon_learns():
    torch.manual_seed(0)
    model, ids = ModernGPT(ModernConfig(**SIZES)), torch.randint(41, (4, 23))
    x = torch.randn(2, 5, 36)
    assert torch.equal(model.blocks[1](x, (model.cos[:5], model.sin[:5])), x)
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for block in model.blocks:
        assert block.attention.out.weight.grad.abs().max() > 0
        assert block.feed_forward.down.weight.grad.abs().max() > 0


def test_matrices_keep_the_variance():
    model = ModernGPT(ModernConfig(**{**SIZES, "width": 240}))
    out = model.blocks[0].feed_forward.up(torch.randn(500, 240))
    assert out.std().item() == pytest.approx(1, abs=0.03)


def test_tied_head_is_one_tensor():
    tied, untied = random_modern(tied=True), random_modern()
    assert tied.head.weight is tied.token_embedding.weight
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (tied, untied)]
    assert count[1] - count[0] == 41 * 36


def test_soft_cap_bounds_the_logits():
    assert soft_cap(torch.tensor([-1e4, 0.0, 0.01, 1e4]), 15.0).tolist() == pytest.approx([-15, 0, 0.01, 15], abs=1e-4)


def test_bf16_gradients_point_the_same_way():
    model, ids = random_modern(seed=2, n_kv_heads=2), torch.randint(41, (4, 17))
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(ids[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_bad_configs_are_refused():
    for options in (
        {"norm": "batch"},
        {"feed_forward": "relu"},
        {"n_heads": 5},
        {"n_heads": 12},  # a head width of 3 cannot be turned in pairs
        {"n_kv_heads": 4},
        {"n_kv_heads": -2},
        {"hidden": 0},
        {"n_layers": 0},
        {"softcap": -1.0},
        {"window": 0},
        {"window": 2.5},
    ):
        with pytest.raises(CourseError):
            ModernGPT(ModernConfig(**{**SIZES, **options}))
    with pytest.raises(CourseError, match="n_kv_heads is 0"):
        ModernConfig(**SIZES, n_kv_heads=0)
    with pytest.raises(CourseError, match="context of 22"):
        random_modern()(torch.zeros(1, 23, dtype=torch.long))
