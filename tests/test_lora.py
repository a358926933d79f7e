"""shared/tuning/lora.py: nothing changes at the start, only the updates learn, merging changes nothing; peft agrees."""

import copy

import pytest
import torch
from torch import nn

from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.model.modern import ModernConfig, ModernGPT
from shared.training.train import TrainConfig, train
from shared.tuning.lora import LoRALinear, add_lora, lora_weights, merge_lora, merged_weight

SIZES = {"vocab_size": 37, "context": 12, "n_layers": 2, "n_heads": 2, "width": 16}


@pytest.fixture(params=["gpt", "modern"])
def model(request):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES)) if request.param == "gpt" else ModernGPT(ModernConfig(**SIZES))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(step):
    ids = torch.randint(37, (4, 13), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:]


def tuned(model, steps=5):
    config = TrainConfig(steps=steps, batch_size=4, optimizer="adamw", learning_rate=0.05, warmup=0, precision="fp32")
    train(model, batch, config)
    return model.eval()


def test_at_the_start_nothing_changes(model):
    ids, _ = batch(0)
    before = model(ids)
    add_lora(model, rank=3, alpha=6.0)
    assert torch.equal(model(ids), before)


def test_only_the_updates_learn(model):
    before = copy.deepcopy(model).state_dict()
    add_lora(model, rank=3, alpha=6.0, where=("qkv", "down"))
    start = {name: tensor.clone() for name, tensor in lora_weights(model).items()}
    tuned(model)
    after = model.state_dict()
    for name, tensor in before.items():
        again = after.get(name, after.get(name.replace(".weight", ".base.weight").replace(".bias", ".base.bias")))
        assert torch.equal(again, tensor), name
    learnt = lora_weights(model)
    assert len(learnt) == 2 * 2 * SIZES["n_layers"]
    assert all(not torch.equal(learnt[name], start[name]) for name in learnt)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(learnt)


@pytest.mark.parametrize("where", [("qkv",), ("qkv", "out"), ("up", "down"), ("qkv", "out", "up", "down")])
def test_merged_equals_unmerged(model, where):
    ids, _ = batch(9)
    names = [name for name, _ in model.named_parameters()]
    add_lora(model, rank=2, alpha=8.0, where=where)
    tuned(model)
    with torch.no_grad():
        expected = model(ids)
        merge_lora(model)
        torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names  # built as before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_update_has_the_rank_that_was_asked_for():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(11, 7), rank=3, alpha=3.0)
    nn.init.normal_(layer.B)
    assert torch.linalg.matrix_rank(merged_weight(layer) - layer.base.weight) == 3


def test_peft_computes_the_same():
    import peft  # takes seconds, and only this test needs it

    torch.manual_seed(0)
    plain = nn.Sequential()
    plain.add_module("qkv", nn.Linear(11, 7))
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(r=3, lora_alpha=12, target_modules=["qkv"]))
    ours = nn.Sequential()
    ours.add_module("qkv", plain.qkv)
    add_lora(ours, rank=3, alpha=12.0)
    nn.init.normal_(ours.qkv.B)
    layer = theirs.base_model.model.qkv
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.qkv.A)
        layer.lora_B["default"].weight.copy_(ours.qkv.B)
    x = torch.randn(5, 11)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    merge_lora(ours)
    torch.testing.assert_close(ours.qkv.weight, theirs.merge_and_unload().qkv.weight, rtol=1e-5, atol=1e-6)


def test_what_makes_no_sense_is_refused(model):
    with pytest.raises(CourseError, match="no linear layer named key"):
        add_lora(model, rank=2, alpha=4.0, where=("key",))
    with pytest.raises(CourseError, match="rank 17 is out of range: use 1 to 16"):
        add_lora(model, rank=17, alpha=4.0)
