"""shared/tuning/quantize.py: at most half a step off, row by row, as PyTorch rounds; the model hardly notices."""

import copy

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.app.report import text_nats
from shared.corpora.stories import World
from shared.course.notebooks import ROOT
from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig
from shared.model.huggingface import export_model
from shared.model.modern import ModernConfig, ModernGPT
from shared.training.checkpoint import load_model
from shared.tuning.quantize import QuantizedLinear, dequantize_rows, quantize_model, quantize_rows

SIZES = {"vocab_size": 37, "context": 12, "n_layers": 2, "n_heads": 2, "width": 16}
numbers = st.floats(-1e6, 1e6, width=32)
matrices = st.integers(1, 7).flatmap(lambda c: st.lists(st.lists(numbers, min_size=c, max_size=c), min_size=1))


def make_model(modern, **more):
    torch.manual_seed(0)
    model = ModernGPT(ModernConfig(**SIZES, **more)) if modern else GPT(GPTConfig(**SIZES))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@settings(deadline=None)
@given(matrices, st.integers(2, 8))
def test_no_weight_is_off_by_more_than_half_a_step_of_its_row(rows, bits):
    weight = torch.tensor(rows)  # (R, C)
    codes, scales = quantize_rows(weight, bits)
    assert codes.dtype == torch.int8 and codes.shape == weight.shape and scales.shape == (len(rows), 1)
    assert codes.abs().max() <= 2 ** (bits - 1) - 1
    error = (dequantize_rows(codes, scales).double() - weight.double()).abs()
    assert (error <= scales.double() * (0.5 + 1e-4)).all()


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(-20, 20), st.integers(0, 2**31))
def test_what_lies_on_the_grid_comes_back_exactly(bits, power, seed):
    limit = 2 ** (bits - 1) - 1
    codes = torch.randint(-limit, limit + 1, (5, 9), generator=torch.Generator().manual_seed(seed))
    codes[:, 3] = limit  # the largest value that the scale is made from
    codes[2, 3] = -limit  # of either sign
    weight = codes * 2.0**power
    again, scales = quantize_rows(weight, bits)
    assert torch.equal(again.long(), codes) and torch.equal(dequantize_rows(again, scales), weight)


def test_a_second_rounding_changes_nothing():
    codes, scales = quantize_rows(torch.randn(6, 11, generator=torch.Generator().manual_seed(0)))
    again, same = quantize_rows(dequantize_rows(codes, scales))
    assert torch.equal(again, codes)
    torch.testing.assert_close(same, scales, rtol=1e-6, atol=0)


def test_rows_of_nothing_stay_nothing():
    weight = torch.zeros(4, 3)
    weight[1] = torch.tensor([1e-42, -3e-43, 0.0])  # so small that max / 127 has hardly a digit left
    weight[2] = 5.0
    codes, scales = quantize_rows(weight)
    assert scales.isfinite().all() and (scales > 0).all()
    again = dequantize_rows(codes, scales)
    assert torch.equal(again[[0, 3]], weight[[0, 3]]) and torch.equal(again[2], weight[2])
    torch.testing.assert_close(again[1], weight[1], rtol=0, atol=1e-37)


def test_a_loud_row_does_not_disturb_its_neighbours():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    codes, scales = quantize_rows(weight)
    weight[3] *= 1024
    louder, changed = quantize_rows(weight)
    assert torch.equal(louder, codes)
    torch.testing.assert_close(changed, scales * torch.tensor([[1.0], [1], [1], [1024], [1]]))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_pytorch_rounds_alike(bits):
    weight = torch.randn(13, 29, generator=torch.Generator().manual_seed(2))
    codes, scales = quantize_rows(weight, bits)
    limit = 2 ** (bits - 1) - 1
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, scales.flatten(), zeros, 0, -limit, limit)
    ours = dequantize_rows(codes, scales)
    ties = (weight / scales).frac().abs().sub(0.5).abs() < 1e-4  # they multiply by 1 / scale: a tie may fall either way
    assert ties.sum() < 5
    torch.testing.assert_close(ours[~ties], theirs[~ties], rtol=1e-6, atol=0)


def test_bfloat16_weights_are_taken_as_they_are():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)).bfloat16()
    for ours, theirs in zip(quantize_rows(weight), quantize_rows(weight.float()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_multiplies_with_what_it_stores(bias):
    torch.manual_seed(4)
    base = nn.Linear(7, 5, bias=bias)
    layer, x = QuantizedLinear(base), torch.randn(2, 3, 7)
    torch.testing.assert_close(layer(x), F.linear(x, layer.codes * layer.scales, base.bias))
    step = layer.scales.squeeze(1) / 2  # (out,): how far a weight can be off
    assert ((layer(x) - base(x)).abs() <= step * x.abs().sum(-1, keepdim=True) + 1e-5).all()
    assert [name for name, _ in layer.named_parameters()] == (["bias"] if bias else [])


@pytest.mark.parametrize("modern", [True, False])
def test_matrices_are_replaced_and_nothing_else(modern):
    model = make_model(modern)
    before = copy.deepcopy(model)
    quantize_model(model)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    linear = {name for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)} == linear
    kept = dict(model.named_parameters())
    for name, parameter in before.named_parameters():
        if name.removesuffix(".weight") not in linear:
            assert torch.equal(kept.pop(name), parameter), name
    assert not kept
    ids = torch.randint(37, (2, 9))
    torch.testing.assert_close(model(ids), before(ids), rtol=0, atol=0.1 * float(before(ids).detach().std()))


def test_a_tied_matrix_stays_with_its_embedding():
    model = make_model(True, tied=True)
    quantize_model(model)
    assert model.head.weight is model.token_embedding.weight
    assert isinstance(model.blocks[1].feed_forward.up, QuantizedLinear)


def test_stored_and_read_back_it_is_the_same_model():
    model = make_model(True)
    quantize_model(model, bits=5)
    data = safetensors.torch.save(model.state_dict())
    fresh = ModernGPT(model.config).eval()
    nn.init.normal_(fresh.head.weight)
    quantize_model(fresh)
    fresh.load_state_dict(safetensors.torch.load(data))
    ids = torch.randint(37, (2, 9))
    assert torch.equal(fresh(ids), model(ids))
    for name, tensor in safetensors.torch.load(data).items():
        assert torch.equal(tensor, model.state_dict()[name]) and tensor.dtype == model.state_dict()[name].dtype
    stored = sum(tensor.nbytes for name, tensor in model.state_dict().items() if name.endswith("codes"))
    floats = sum(module.weight.numel() for module in ModernGPT(model.config).modules() if isinstance(module, nn.Linear))
    assert stored == floats  # a byte each, where a float32 takes four


def test_the_reference_model_hardly_notices(tmp_path):
    model, tokenizer, _ = load_model(ROOT / "shared" / "reference")
    stories = World.load().stories(24, seed=77, split="val")
    before, tokens = text_nats(model, tokenizer, stories)
    quantize_model(model)
    after, _ = text_nats(model, tokenizer, stories)
    assert abs(after - before) / tokens < 0.002
    export_model(model, tokenizer, tmp_path / "exported")  # strangers get the rounded matrices as floats
    exported = safetensors.torch.load_file(tmp_path / "exported" / "model.safetensors")
    assert torch.equal(exported["lm_head.weight"], model.head.weight)


@pytest.mark.parametrize(
    ("weight", "bits", "words"),
    [
        (torch.ones(2, 3), 9, "bits is 9: choose 2 to 8"),
        (torch.ones(2, 3), 1, "bits is 1"),
        (torch.ones(3), 8, r"the shape \(3,\): give a matrix"),
        (torch.tensor([[1.0, torch.nan]]), 8, "an infinity or a nan"),
        (torch.tensor([[1.0, -torch.inf]]), 4, "an infinity or a nan"),
    ],
)
def test_what_makes_no_sense_is_refused(weight, bits, words):
    with pytest.raises(CourseError, match=words) as caught:
        quantize_rows(weight, bits)
    assert "\n" not in str(caught.value)


def test_a_model_is_refused_whole():
    model = make_model(False)
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[0, 0] = torch.nan
    with pytest.raises(CourseError, match="infinity or a nan"):
        quantize_model(model)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    model = make_model(False)
    quantize_model(model)
    with pytest.raises(CourseError, match="no linear layer to quantise"):
        quantize_model(model)
