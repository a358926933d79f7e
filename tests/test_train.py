"""The loop: what it minimises, what it depends on, how it stops."""

import math
import os
import signal

import pytest
import torch

from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.text.loader import IGNORE_INDEX, Shard, write_shard
from shared.training.evaluate import cross_entropy
from shared.training.train import (
    Run,
    TrainConfig,
    TrainingInterrupted,
    accumulate_gradients,
    build_optimizers,
    learning_rate_factor,
    next_token_loss,
    sample_every,
    show_progress,
    stop_early,
    train,
    validate_every,
)

V, T = 19, 8


def small_model(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=V, context=T, n_layers=1, n_heads=2, width=16, dropout=dropout))


def config(**options):
    options = {"steps": 6, "batch_size": 4, "warmup": 2, "decay": 2, "precision": "fp32", **options}
    return TrainConfig(**options)


def batch_with_unequal_masks():
    torch.manual_seed(5)
    ids = torch.randint(0, V, (4, T + 1))
    targets = ids[:, 1:].clone()
    for row, kept in enumerate((1, 8, 3, 0)):  # row 3 has no target at all
        targets[row, kept:] = IGNORE_INDEX
    return ids[:, :-1], targets


def gradients(micro_batches):
    model = small_model()
    loss = accumulate_gradients(model, batch_with_unequal_masks(), micro_batches, precision="fp32")
    return loss, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("micro_batches", [2, 3, 4])
def test_accumulation_gives_the_loss_and_the_gradient_of_the_whole_batch(micro_batches):
    inputs, targets = batch_with_unequal_masks()
    model = small_model()
    expected = cross_entropy(model(inputs), targets, "mean")
    expected.backward()
    loss, found = gradients(micro_batches)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-7, rtol=1e-4)
    # the usual mistake, a mean of means, is something else here, so the comparison above could fail
    halves = [cross_entropy(model(i), t, "mean").item() for i, t in zip(inputs.chunk(2), targets.chunk(2), strict=True)]
    assert abs(sum(halves) / 2 - loss) > 1e-3


def test_a_batch_without_targets_has_zero_loss_and_gradient():
    inputs, _ = batch_with_unequal_masks()
    model = small_model()
    assert accumulate_gradients(model, (inputs, torch.full_like(inputs, IGNORE_INDEX)), 1) == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def random_shard(directory, seed=0, n=40):
    """Documents of independent uniform tokens: nobody can predict the next one."""
    generator = torch.Generator().manual_seed(seed)
    write_shard(directory, torch.randint(0, V, (n, T + 1), generator=generator).tolist(), None, T)
    return Shard.open(directory)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_one_batch_is_learned_by_heart(optimizer):
    torch.manual_seed(1)
    ids = torch.randint(0, V, (3, T + 1))
    batch = (ids[:, :-1], ids[:, 1:])
    options = config(steps=150, batch_size=3, optimizer=optimizer, learning_rate=0.01, matrix_learning_rate=0.05)
    history = train(small_model(), lambda step: batch, options)
    assert history[0]["loss"] == pytest.approx(math.log(V), rel=0.1)
    assert history[-1]["loss"] < 0.05


def test_targets_are_the_next_tokens():
    """The next of independent tokens cannot be predicted; the token at hand, an unshifted target, can at once."""
    generator = torch.Generator().manual_seed(2)
    fresh = torch.randint(0, V, (80, 4, T + 1), generator=generator)
    options = config(steps=80, learning_rate=0.02)
    shifted = train(small_model(), lambda step: (fresh[step, :, :-1], fresh[step, :, 1:]), options)
    copied = train(small_model(), lambda step: (fresh[step, :, :-1], fresh[step, :, :-1]), options)
    assert shifted[-1]["loss"] > 0.9 * math.log(V)
    assert copied[-1]["loss"] < 0.5 * math.log(V)


def test_a_shard_gives_shifted_batches(tmp_path):
    seen = []

    def spy(model, batch):
        seen.append(batch)
        return next_token_loss(model, batch)

    train(small_model(), random_shard(tmp_path), config(steps=2), loss=spy)
    for inputs, targets in seen:
        assert inputs.shape == targets.shape == (4, T)
        assert torch.equal(inputs[:, 1:], targets[:, :-1]) and not torch.equal(inputs, targets)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_run_depends_on_its_seed_and_on_nothing_a_callback_does(tmp_path):
    shard = random_shard(tmp_path)

    def disturb(run):
        torch.randn(run.step)
        run.model.eval()
        run.model.train()

    runs = []
    for seed, callbacks in ((0, []), (0, [disturb]), (1, [])):
        torch.manual_seed(99 + len(runs))  # the state of the generator before training must not matter
        model = small_model(dropout=0.3)
        history = train(model, shard, config(seed=seed), callbacks)
        runs.append((history, model.state_dict()))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())


def test_dropout_differs_from_step_to_step():
    batch = batch_with_unequal_masks()
    still = config(steps=3, learning_rate=1e-12, matrix_learning_rate=1e-12)
    losses = [record["loss"] for record in train(small_model(dropout=0.5), lambda step: batch, still)]
    assert len(set(losses)) == 3


def test_resuming_in_the_same_process_is_bitwise_equal(tmp_path):
    shard = random_shard(tmp_path)
    states = []
    straight = small_model(dropout=0.2)
    history = train(straight, shard, config(), [lambda run: states.append(clone(run.state()))])
    for state in states[:-1]:
        resumed = small_model(seed=7, dropout=0.2)
        assert train(resumed, shard, config(), state=state) == history
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))


def clone(value):
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clone(item) for item in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_a_finished_run_is_not_trained_further(tmp_path):
    states = []
    shard = random_shard(tmp_path)
    history = train(small_model(), shard, config(), [lambda run: states.append(run.state())])
    assert train(small_model(), shard, config(), state=states[-1]) == history


def test_the_history_and_the_callbacks(tmp_path, capsys):
    order = []
    callbacks = [
        validate_every(4, lambda model: float(not model.training) + 0.5),
        sample_every(4, lambda model: f"a sample, training {model.training}"),
        lambda run: order.append((run.step, run.history[-1].get("val_loss"), run.finished)),
        show_progress(),
    ]
    options = config()
    history = train(small_model(), random_shard(tmp_path), options, callbacks)
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert [record["factor"] for record in history] == [learning_rate_factor(options, step) for step in range(6)]
    # a call-back sees the value that an earlier one has put into the record, at every 4th step and at the last
    assert [(step, value is not None) for step, value, _ in order] == [(s, s in (4, 6)) for s in range(1, 7)]
    assert order[-1][2] and not order[-2][2]
    assert "step 4: a sample, training False" in capsys.readouterr().err


@pytest.mark.parametrize(
    "losses, steps, best", [([3, 2, 5, 4, 1, 0], 4, 2), ([3, 2, 5, 1, 9, 8], 6, 4), ([6, 5, 4, 3, 2, 1], 6, 6)]
)
def test_a_run_stops_early_and_keeps_its_best_weights(tmp_path, losses, steps, best):
    seen, model = [], small_model()

    def measure(model):
        seen.append(clone(model.state_dict()))
        return float(losses[len(seen) - 1])

    finished = []
    callbacks = [validate_every(1, measure), stop_early(2), lambda run: finished.append(run.finished)]
    history = train(model, random_shard(tmp_path), config(), callbacks)
    assert len(history) == len(seen) == steps and finished == [False] * (steps - 1) + [True]
    assert all(torch.equal(tensor, seen[best - 1][name]) for name, tensor in model.state_dict().items())


def test_a_run_without_measurements_does_not_stop_early(tmp_path):
    model, other = small_model(), small_model()
    history = train(model, random_shard(tmp_path), config(), [stop_early(1)])
    assert history == train(other, random_shard(tmp_path), config())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_ctrl_c_finishes_the_step_and_leaves_a_state_to_go_on_from(tmp_path):
    shard = random_shard(tmp_path)
    expected = train(small_model(), shard, config())
    saved = []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted_loss(model, batch):
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the third step
        steps.append(1)
        return next_token_loss(model, batch)

    def keep(run):
        if run.interrupted:
            saved.append(run.state())

    steps = []
    model = small_model()
    with pytest.raises(TrainingInterrupted, match="step 3 of 6"):
        train(model, shard, config(), [keep], loss=interrupted_loss)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [state["step"] for state in saved] == [3]
    assert train(small_model(), shard, config(), state=saved[0]) == expected


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def impatient(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        train(small_model(), random_shard(tmp_path), config(), loss=impatient)


def test_a_loss_that_is_no_number_stops_before_the_weights_change():
    model = small_model()
    before = clone(model.state_dict())

    def broken(model, batch):
        total, count = next_token_loss(model, batch)
        return total * float("inf"), count

    with pytest.raises(CourseError, match="step 1: lower the learning rate"):
        train(model, lambda step: batch_with_unequal_masks(), config(), loss=broken)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_groups_keep_their_own_learning_rates_through_the_schedule(tmp_path):
    options = config(learning_rate=0.1, embedding_learning_rate=0.2, matrix_learning_rate=0.3, weight_decay=0.05)
    model = small_model()
    rates = []

    def look(run):
        groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
        rates.append({p.data_ptr(): group["lr"] for group in groups for p in group["params"]})

    train(model, random_shard(tmp_path), options, [look])
    half = learning_rate_factor(options, 5)
    assert 0 < half < 1
    block = model.blocks[0]
    for parameter, peak in (
        (block.attention.qkv.weight, 0.3),
        (block.attention.qkv.bias, 0.1),
        (model.token_embedding.weight, 0.2),
    ):
        assert rates[-1][parameter.data_ptr()] == pytest.approx(peak * half)
    plain = config(optimizer="adamw", learning_rate=0.1, matrix_learning_rate=0.3)
    assert {group["lr"] for optimizer in build_optimizers(model, plain) for group in optimizer.param_groups} == {0.1}
    decays = {
        id(p): group["weight_decay"]
        for optimizer in build_optimizers(model, options)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decays[id(block.attention.qkv.weight)] == 0.05 and decays[id(block.norm1.weight)] == 0
    assert len(decays) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch_size": -1},
        {"micro_batches": 0},
        {"micro_batches": 5},
        {"warmup": -1},
        {"optimizer": "sgd"},
        {"schedule": "linear"},
        {"precision": "fp16"},
    ],
)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(CourseError, match=next(iter(options))):
        config(**options)


def test_run_knows_what_is_due():
    run = Run(small_model(), config(steps=5), step=4)
    assert run.due(2) and not run.due(3) and not run.due(0)
    run.step = 5
    assert run.due(3) and run.due(0) and run.finished
