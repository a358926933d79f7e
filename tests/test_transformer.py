"""shared/model/seq2seq.py: the transformer of 2017 against PyTorch's, its masks, and writing word by word."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.errors import CourseError
from shared.model.gpt import GPTConfig
from shared.model.layers import Block
from shared.model.seq2seq import CrossAttention, DecoderBlock, Transformer, translate

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
CONFIG = GPTConfig(vocab_size=13, context=16, n_layers=2, n_heads=3, width=12)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def ragged(batch, length):
    """A mask (B, S) with 1 to S words in each row, and S in the first."""
    words = torch.randint(1, length + 1, (batch, 1))
    words[0] = length
    return torch.arange(length) < words


def randomised(module):
    """No weight or bias is left at 0 or 1, so that none can be forgotten unnoticed."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4), tokens=st.integers(1, 7), words=st.integers(1, 9), heads=st.integers(1, 5),
    head_width=st.integers(1, 6), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_cross_attention_equals_torch(dtype, tolerance, batch, tokens, words, heads, head_width, seed):
    torch.manual_seed(seed)
    width = heads * head_width
    ours = randomised(CrossAttention(width, heads)).to(dtype)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True).to(dtype)
    theirs.in_proj_weight.data = torch.cat((ours.q.weight, ours.kv.weight)).detach()
    theirs.in_proj_bias.data = torch.cat((ours.q.bias, ours.kv.bias)).detach()
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, memory = torch.randn(batch, tokens, width, dtype=dtype), torch.randn(batch, words, width, dtype=dtype)
    mask = ragged(batch, words)
    expected, _ = theirs(x, memory, memory, key_padding_mask=~mask)
    assert torch.allclose(ours(x, memory, mask), expected, rtol=tolerance, atol=tolerance)


def as_torch(model):
    """PyTorch's encoder and decoder of `nn.Transformer` with the weights of ours."""
    config, final = model.config, nn.LayerNorm(model.config.width)
    theirs = nn.Transformer(
        d_model=config.width,
        nhead=config.n_heads,
        num_encoder_layers=config.n_layers,
        num_decoder_layers=config.n_layers,
        dim_feedforward=4 * config.width,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=True,
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                config.width,
                config.n_heads,
                4 * config.width,
                0.0,
                lambda x: F.gelu(x, approximate="tanh"),
                batch_first=True,
                norm_first=True,
            ),
            config.n_layers,
            final,
            enable_nested_tensor=False,
        ),
    )
    state = {}
    norms = {"encoder": {"norm1": "norm1", "norm2": "norm2"}, "decoder": {"norm1": "norm1", "cross_norm": "norm2"}}
    norms["decoder"]["norm2"] = "norm3"
    parts = {"attention.out": "self_attn.out_proj", "cross_attention.out": "multihead_attn.out_proj"}
    parts |= {"feed_forward.up": "linear1", "feed_forward.down": "linear2"}
    for name, tensor in model.state_dict().items():
        half, _, rest = name.partition(".")
        if half in ("encoder_norm", "decoder_norm"):
            state[name.replace("_norm", ".norm")] = tensor
        elif half in norms:
            layer, _, rest = rest.partition(".")
            part, _, kind = rest.rpartition(".")
            prefix = f"{half}.layers.{layer}."
            if part == "attention.qkv":
                state[f"{prefix}self_attn.in_proj_{kind}"] = tensor
            elif part == "cross_attention.q":
                other = model.state_dict()[name.replace(".q.", ".kv.")]
                state[f"{prefix}multihead_attn.in_proj_{kind}"] = torch.cat((tensor, other))
            elif part != "cross_attention.kv":
                state[f"{prefix}{(parts | norms[half])[part]}.{kind}"] = tensor
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("heads", "head_width", "layers"), [(1, 4, 1), (3, 4, 2), (2, 5, 3)])
def test_transformer_equals_torch_with_padding_on_both_sides(dtype, tolerance, heads, head_width, layers):
    config = GPTConfig(vocab_size=17, context=11, n_layers=layers, n_heads=heads, width=heads * head_width)
    model = randomised(Transformer(config)).to(dtype)
    theirs = as_torch(model).to(dtype)
    source, target = torch.randint(17, (4, 9)), torch.randint(17, (4, 6))
    source_mask, target_mask = ragged(4, 9), ragged(4, 6)
    future = torch.ones(6, 6).triu(1).bool()
    stream = theirs(
        model.embed(source),
        model.embed(target),
        tgt_mask=future,
        src_key_padding_mask=~source_mask,
        tgt_key_padding_mask=~target_mask,
        memory_key_padding_mask=~source_mask,
    )
    expected = F.linear(stream, model.embedding.weight)[target_mask]  # real places alone
    ours = model(source, source_mask, target)[target_mask]
    assert (ours - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


def test_padding_is_never_heard():
    model = Transformer(CONFIG)
    source, given_words = torch.randint(13, (3, 7)), torch.randint(13, (3, 5))
    mask = ragged(3, 7)
    logits = model(source, mask, given_words)
    other = torch.where(mask, source, (source + 1) % 13)
    assert torch.allclose(model(other, mask, given_words), logits, atol=1e-6)
    for row in range(3):  # in company as alone
        alone = model(source[row : row + 1, mask[row]], mask[row : row + 1, mask[row]], given_words[row : row + 1])
        assert torch.allclose(alone[0], logits[row], atol=1e-5)


def test_the_decoder_sees_all_of_the_source_and_only_the_past_of_the_target():
    model = randomised(Transformer(CONFIG))
    source, given_words = torch.randint(13, (1, 6)), torch.randint(13, (1, 5))
    mask = torch.ones(1, 6, dtype=torch.bool)
    logits = model(source, mask, given_words)
    for place in range(5):
        changed = given_words.clone()
        changed[0, place] = (changed[0, place] + 1) % 13
        moved = (model(source, mask, changed) - logits).abs().amax(dim=-1)[0] > 1e-5
        assert not moved[:place].any() and moved[place:].all()
    for place in range(6):
        changed = source.clone()
        changed[0, place] = (changed[0, place] + 1) % 13
        assert ((model(changed, mask, given_words) - logits).abs().amax(dim=-1) > 1e-5).all()


def test_a_decoder_block_without_cross_attention_is_a_block():
    block = randomised(DecoderBlock(CONFIG))
    x, memory, mask = torch.randn(2, 5, 12), torch.randn(2, 4, 12), torch.ones(2, 4, dtype=torch.bool)
    plain = Block(block.norm1, block.attention, block.norm2, block.feed_forward)
    assert not torch.allclose(block(x, memory, mask), plain(x), atol=1e-3)
    nn.init.zeros_(block.cross_attention.out.weight)
    nn.init.zeros_(block.cross_attention.out.bias)
    assert torch.equal(block(x, memory, mask), plain(x))


def test_translate_writes_in_company_what_it_writes_alone():
    model = randomised(Transformer(CONFIG))
    source, mask = torch.randint(13, (5, 7)), ragged(5, 7)
    free = translate(model, source, mask, 9, start=1, stop=-1)  # nothing stops it
    assert free.shape == (5, 9)
    given_words = torch.cat((torch.ones(5, 1, dtype=torch.long), free[:, :-1]), dim=1)
    assert torch.equal(model(source, mask, given_words).argmax(dim=-1), free)
    stop = free[0, 2].item()
    together = translate(model, source, mask, 9, start=1, stop=stop)
    for row, words in enumerate(free.tolist()):
        expected = words[: words.index(stop)] if stop in words else words
        assert together[row].tolist() == (expected + [stop] * 9)[: together.shape[1]]
        alone = translate(model, source[row : row + 1, mask[row]], mask[row : row + 1, mask[row]], 9, 1, stop)[0]
        assert alone.tolist() == words[: len(alone)] and len(alone) == min(9, len(expected) + 1)
    assert translate(model, source, mask, 0, start=1, stop=2).shape == (5, 0)


def test_a_sentence_beyond_the_context_is_refused():
    model = Transformer(CONFIG)
    long = torch.zeros(1, 17, dtype=torch.long)
    with pytest.raises(CourseError, match="context of 16"):
        model.encode(long, torch.ones_like(long, dtype=torch.bool))
