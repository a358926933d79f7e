"""The race of two recipes: equal data, equal judging, the time that each may take, and what the new model adds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.app import bench_recipes as bench
from shared.app.bench_model import SpeedConfig, SpeedGPT, ngram_ids
from shared.app.bench_recipes import CONTEXT, Characters, Contestant, Recipe, batch_of, load_characters, race
from shared.app.cli import main
from shared.errors import CourseError
from shared.training import train as training
from shared.training.evaluate import document_nats
from shared.training.optim import parameter_groups

TINY = SpeedConfig(11, 12, n_layers=3, n_heads=2, width=16, ngrams=((2, 144), (3, 50)))
SWITCHES = [
    {},
    {"norm": "rms"},
    {"positions": "learned"},
    {"qk_norm": False},
    {"activation": "gelu"},
    {"zero_init": False},
    {"tied": True},
    {"value_embeddings": False},
    {"x0_skips": False},
    {"softcap": 5.0},
    {"ngrams": ()},
]


def tiny_model(**switches):
    """A model in which nothing is zero any more, so that every part has its say."""
    torch.manual_seed(0)
    model = SpeedGPT(replace(TINY, **switches))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def tiny_characters(n=2000, vocab_size=11):
    ids = torch.randint(0, vocab_size, (n,), generator=torch.Generator().manual_seed(1))
    return Characters(vocab_size, ids[: n * 9 // 10], ids[n * 9 // 10 :])


@pytest.mark.parametrize("switches", SWITCHES)
def test_no_position_sees_what_comes_after_it(switches):
    model, ids = tiny_model(**switches), torch.randint(0, 11, (2, 12))
    logits = model(ids)
    for place in range(12):
        other = ids.clone()
        other[:, place] = (other[:, place] + 1 + torch.arange(2)) % 11
        changed = (model(other) - logits).abs().amax(dim=(0, 2))  # (T,)
        assert (changed[:place] == 0).all() and changed[place] > 1e-4


@pytest.mark.parametrize("switches", SWITCHES)
def test_every_parameter_gets_a_gradient_and_stands_in_one_optimizer(switches):
    model = tiny_model(**switches).train()
    ids = torch.randint(0, 11, (3, 12))
    model(ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.to_dense().abs().sum() > 0, name
    for optimizer in ("muon", "adamw"):
        built = bench.new_optimizers(model, Recipe(optimizer=optimizer))
        members = [id(p) for o in built for group in o.param_groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in model.parameters())
        muon = [id(p) for o in built if isinstance(o, bench.Muon) for group in o.param_groups for p in group["params"]]
        wanted = parameter_groups(model)["matrices"] if optimizer == "muon" else []
        assert sorted(muon) == sorted(map(id, wanted))


@pytest.mark.parametrize("switch", [{"value_embeddings": False}, {"x0_skips": False}, {"ngrams": ()}])
def test_what_is_switched_off_has_no_parameters(switch):
    whole = sum(p.numel() for p in SpeedGPT(TINY).parameters())
    less = sum(p.numel() for p in SpeedGPT(replace(TINY, **switch)).parameters())
    expected = {"value_embeddings": 3 * (11 * 16 + 1), "x0_skips": 2 * 2, "ngrams": (144 + 50) * 16}
    assert whole - less == expected[next(iter(switch))]


def test_value_embeddings_change_the_values_and_nothing_else():
    """With queries and keys of zero every token averages all values before it: the embedding is averaged with them."""
    model = tiny_model(x0_skips=False)
    block, ids = model.blocks[0], torch.randint(0, 11, (2, 12))
    x = torch.randn(2, 12, 16)
    with torch.no_grad():
        block.qkv.weight[:32] = 0
        block.out.weight.copy_(torch.eye(16))
        with_table = block.attend(x, ids, None)
        gain = block.value_gain.item()
        block.value_gain.zero_()
        without = block.attend(x, ids, None)
        table = block.value_embedding(ids)  # (B, T, D)
    average = table.cumsum(dim=1) / torch.arange(1, 13)[:, None]
    assert torch.allclose(with_table - without, gain * average, atol=1e-5)


def test_x0_skips_start_as_no_skip_and_can_forget_the_stream():
    torch.manual_seed(0)
    model = tiny_model()
    ids = torch.randint(0, 11, (2, 12))
    with torch.no_grad():
        model.skip_gains.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
        plain = model(ids)
        model.skip_gains.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]))  # the last layer reads the embeddings alone
        forgetful = model(ids)
        model.blocks[1].down.weight.mul_(-3)
        assert torch.equal(model(ids), forgetful) and not torch.allclose(plain, forgetful)
    fresh = SpeedGPT(TINY)
    assert fresh.skip_gains.tolist() == [1, 0, 1, 0]


def test_soft_cap_bounds_the_logits_and_keeps_their_order():
    plain, capped = tiny_model(), tiny_model(softcap=2.0)
    ids = torch.randint(0, 11, (2, 12))
    a, b = plain(ids), capped(ids)
    assert a.abs().max() > 2 > b.abs().max()
    assert torch.equal(a.argmax(dim=-1), b.argmax(dim=-1))


def test_ngrams_are_told_apart_and_read_nothing_before_the_row():
    ids = torch.cartesian_prod(*[torch.arange(5)] * 3)  # (125, 3): all sequences of three tokens
    rows = ngram_ids(ids, 3, 216, 5)[:, -1]
    assert len(set(rows.tolist())) == 125 and rows.max() < 216
    begins = ngram_ids(ids, 3, 216, 5)
    assert len(set(begins[:, 0].tolist())) == 5 and not set(begins[:, 0].tolist()) & set(rows.tolist())
    hashed = ngram_ids(ids, 3, 40, 5)
    assert hashed.min() >= 0 and hashed.max() < 40
    counts = np.bincount(hashed[:, -1].numpy(), minlength=40)
    assert (counts > 0).sum() > 30 and counts.max() < 12  # spread over the rows, not heaped


def test_with_zeros_for_init_the_untrained_model_says_nothing_and_every_block_passes_on():
    torch.manual_seed(0)
    model, x = SpeedGPT(TINY), torch.randn(2, 12, 16)
    assert torch.equal(model.blocks[0](x, torch.zeros(2, 12, dtype=torch.int64), None), x)
    other = SpeedGPT(replace(TINY, zero_init=False))
    assert not torch.equal(other.blocks[0](x, torch.zeros(2, 12, dtype=torch.int64), None), x)


def test_all_of_the_validation_text_is_read_once():
    characters = tiny_characters()
    model = SpeedGPT(SpeedConfig(11, CONTEXT, n_layers=1, n_heads=2, width=16, ngrams=()))  # says nothing: ln V each
    _, counts = document_nats(model, [characters.val.tolist()], precision="fp32")
    assert counts.sum() == len(characters.val) - 1
    torch.nn.init.normal_(model.head.weight)
    # by hand: windows of CONTEXT side by side, the last one shorter
    nats, val = 0.0, characters.val
    for start in range(0, len(val) - 1, CONTEXT):
        window = val[start : start + CONTEXT + 1]
        nats += torch.nn.functional.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum").item()
    assert bench.val_loss(model, characters) == pytest.approx(nats / (len(val) - 1), rel=1e-5)


def test_the_split_is_nine_to_one_without_a_gap(tmp_path):
    text = "".join(f"{n} to be or not to be\n" for n in range(300))
    (tmp_path / "play.txt").write_text(text, encoding="utf-8")
    characters = load_characters(tmp_path / "play.txt")
    letters = {
        id: letter for letter, id in zip(text, [*characters.train.tolist(), *characters.val.tolist()], strict=True)
    }
    assert "".join(letters[id] for id in characters.train.tolist()) == text[: len(text) * 9 // 10]
    assert characters.vocab_size == len(set(text))


def test_every_recipe_reads_the_same_rows_and_an_epoch_reads_no_window_twice():
    characters = tiny_characters(20 * CONTEXT * 10 // 9 + 5)
    marked = replace(characters, train=torch.arange(len(characters.train)))  # ids that say where they stand
    windows = (len(marked.train) - CONTEXT - 1) // CONTEXT
    wide = [batch_of(marked, step, 6, 3)[0][:, 0] for step in range(10)]
    narrow = [batch_of(marked, step, 3, 3)[0][:, 0] for step in range(20)]
    assert torch.equal(torch.cat(wide), torch.cat(narrow))
    first = torch.cat(wide)[:windows]
    assert len(set((first // CONTEXT).tolist())) == windows and len(set((first % CONTEXT).tolist())) == 1
    inputs, targets = batch_of(marked, 0, 6, 3)
    assert inputs.shape == (6, CONTEXT) and torch.equal(inputs + 1, targets)
    assert not torch.equal(batch_of(marked, 0, 6, 4)[0], inputs)


def test_the_baseline_is_the_published_recipe():
    config = bench.BASELINE
    factors = [training.learning_rate_factor(config, step) * config.learning_rate for step in range(config.steps + 1)]
    assert max(factors) == factors[100] == pytest.approx(1e-3) and factors[-1] == pytest.approx(1e-4)
    assert np.all(np.diff(factors[:101]) > 0) and np.all(np.diff(factors[100:]) < 0)
    contestant = bench.baseline_contestant(tiny_characters(), 0)
    weights = sum(p.numel() for p in contestant.model.parameters())
    assert weights == 4 * (12 * 128**2 + 13 * 128) + (11 + 64) * 128 + 2 * 128


def test_rates_rise_stay_and_fall_to_zero_whatever_the_number_of_steps():
    for schedule in ("stable", "cosine"):
        recipe = Recipe(schedule=schedule, warmup=0.1, decay=0.5)
        factors = [bench.learning_rate_factor(recipe, p) for p in np.linspace(0, 1, 101)]
        assert factors[0] < 0.01 and factors[-1] == 0 and max(factors) == pytest.approx(1, abs=1e-4)
        assert np.all(np.diff(factors[:11]) > 0) and np.all(np.diff(factors[10:]) <= 1e-9)
    assert bench.learning_rate_factor(Recipe(warmup=0.1, decay=0.5), 0.4) == 1


def test_the_long_run_takes_the_baselines_time_and_not_more(monkeypatch):
    """A clock of our own: a step of the baseline takes 1 second, one of the new recipe 7."""
    now = [0.0]
    monkeypatch.setattr(bench, "perf_counter", lambda: now[0])
    seen = []

    def side(seconds, keep=None):
        def advance(step, progress):
            now[0] += seconds
            if keep is not None:
                keep.append(progress)

        return Contestant(torch.nn.Identity(), advance)

    baseline, short, long = side(1.0), side(7.0), side(7.0, seen)
    race(baseline, short, long, steps=200, short_steps=5)
    assert (baseline.steps, baseline.seconds, short.steps) == (200, 200.0, 5)
    assert long.steps == 28 and long.seconds == 196.0  # a 29th would end after 203
    assert seen == pytest.approx([7 * n / 200 for n in range(28)])


def test_a_pause_of_the_machine_is_not_training(monkeypatch):
    now, durations = [0.0], iter([0.9, 1.1] * 20 + [5.0, 600.0, 1.0])
    monkeypatch.setattr(bench, "perf_counter", lambda: now[0])

    def advance(step, progress):
        now[0] += next(durations)

    side = Contestant(torch.nn.Identity(), advance)
    for _ in range(43):
        side.turn(0.0)
    assert side.seconds == pytest.approx(40 + 5 + 45 / 41 + 1)  # slow is counted, stopped is not


def test_a_race_is_repeatable_and_both_sides_learn(monkeypatch):
    small = replace(bench.BASELINE, steps=6, warmup=1)
    monkeypatch.setattr(bench, "BASELINE_SIZES", {"context": CONTEXT, "n_layers": 1, "n_heads": 2, "width": 16})
    recipe = Recipe(steps=6, batch_size=4, model={"n_layers": 1, "width": 16, "ngrams": ((2, 144),)})
    pattern = torch.arange(2000) % 11  # what comes next is certain
    characters = Characters(11, pattern[:1800], pattern[1800:])
    losses = []
    for _ in range(2):
        sides = bench.baseline_contestant(characters, 0, small), bench.new_contestant(characters, 0, recipe)
        before = [bench.val_loss(side.model, characters) for side in sides]
        for side in sides:
            for step in range(6):
                side.turn(step / 6)
        losses.append([bench.val_loss(side.model, characters) for side in sides])
        assert all(after < start for after, start in zip(losses[-1], before, strict=True))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("short", "long", "code"), [((9.0, 1.87), 1.5, 0), ((9.0, 1.9), 1.5, 1), ((9.0, 1.87), 1.6, 1)]
)
def test_the_verdict_needs_speed_and_both_losses(monkeypatch, capsys, tmp_path, short, long, code):
    def race_seed(characters, seed):
        return {
            "seed": seed,
            "baseline": {"seconds": 70.0 + seed, "val_loss": 1.88, "steps": 2000},
            "short": {"seconds": short[0] - seed / 7, "val_loss": short[1], "steps": 60},
            "long": {"seconds": 70.0, "val_loss": long + seed * 0.001, "steps": 900},
        }

    monkeypatch.setattr(bench, "race_seed", race_seed)
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be.\n" * 200, encoding="utf-8")
    assert main(["bench", "recipes", "--json", "--data", str(path)]) == code
    time, loss = json.loads(capsys.readouterr().out)
    assert time["ratio"] == pytest.approx(time["peer"] / time["ours"]) and time["peer"] == pytest.approx(71.0)
    assert loss["ours"] == pytest.approx(long + 0.001) and loss["peer"] == 1.88
    assert loss["ok"] == (loss["ratio"] >= loss["bound"]) == (long + 0.001 <= 1.55)
    assert [run["seed"] for run in time["runs"]] == [0, 1, 2]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(CourseError, match="no part of this model"):
        SpeedConfig(10, norm="batch")
    (tmp_path / "short.txt").write_text("abcdefghi\n" * 60, encoding="utf-8")
    with pytest.raises(CourseError):
        load_characters(tmp_path / "short.txt")
    with pytest.raises(CourseError, match=r"absent\.txt"):
        load_characters(tmp_path / "absent.txt")
