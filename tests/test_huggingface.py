"""shared/model/huggingface.py: what we export, transformers loads; same logits, same ids, same greedy text."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from shared.errors import CourseError
from shared.model.generate import generate
from shared.model.gpt import GPT, GPTConfig
from shared.model.huggingface import byte_characters, export_model, load_gpt2, recipe_name, swap_halves
from shared.model.modern import RECIPES, ModernConfig, ModernGPT
from shared.text.bpe import BPETokenizer, gpt2_tokenizer
from shared.text.template import SPECIAL_TOKENS, render_conversation, render_prompt

TEXT = "The fox's lantern was red. The owl said: it'll rain, won't it? Café, naïve, 12 345 things.\n\n  And so on. " * 3
TOKENIZER = BPETokenizer.train(TEXT, 310, SPECIAL_TOKENS)
SIZES = {"vocab_size": TOKENIZER.vocab_size, "context": 48, "n_layers": 2, "n_heads": 4, "width": 24}
MODELS = {
    "gpt": GPT(GPTConfig(**SIZES)),
    "nanochat": ModernGPT(ModernConfig(**SIZES, n_kv_heads=2, softcap=15.0)),
    "nanochat-tied": ModernGPT(ModernConfig(**SIZES, tied=True)),
    "llama": ModernGPT(ModernConfig(**SIZES, **RECIPES["llama"], n_kv_heads=2, hidden=40)),
    "qwen3": ModernGPT(ModernConfig(**SIZES, **RECIPES["qwen3"], rotary_base=500.0)),
    "mistral": ModernGPT(ModernConfig(**SIZES, **RECIPES["mistral"] | {"window": 7})),
}


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each model in a folder, loaded by the library: name -> (ours, theirs, folder)."""
    torch.manual_seed(0)
    loaded = {}
    for name, model in MODELS.items():
        for parameter in model.eval().parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        export_model(model, TOKENIZER, folder)
        theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info  # nothing missing, unexpected or of another shape
        loaded[name] = (model, theirs.eval(), folder)
    return loaded


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_text_are_equal(exported, name):
    ours, theirs, folder = exported[name]
    ids = torch.randint(TOKENIZER.vocab_size, (3, 48))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
    prompt = torch.tensor([AutoTokenizer.from_pretrained(folder).encode("The owl")])
    assert prompt.tolist() == [TOKENIZER.encode("The owl")]
    stops = [TOKENIZER.special_tokens[token] for token in ("<|endoftext|>", "<|end|>")]
    ours_text = generate(ours, prompt, 40, temperature=0, stop_tokens=stops)
    theirs_text = theirs.generate(prompt, max_new_tokens=40, do_sample=False)
    assert ours_text.tolist() == theirs_text.tolist()
    assert theirs.generation_config.eos_token_id == stops


@pytest.fixture(scope="module")
def library_tokenizer(exported):
    return AutoTokenizer.from_pretrained(exported["gpt"][2])


def test_special_tokens_and_conversations(library_tokenizer):
    assert len(library_tokenizer) == TOKENIZER.vocab_size
    for token, number in TOKENIZER.special_tokens.items():
        assert library_tokenizer.convert_tokens_to_ids(token) == number

    class Exchange:
        user, assistant = "Who is the owl?", "A friend."

    messages = [{"role": "user", "content": Exchange.user}, {"role": "assistant", "content": Exchange.assistant}]
    ids, _ = render_conversation(TOKENIZER, [Exchange()])
    assert library_tokenizer.apply_chat_template(messages)["input_ids"] == ids
    question = [*messages, {"role": "user", "content": "And?"}]
    ids = render_prompt(TOKENIZER, [Exchange()], "And?")
    assert library_tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"] == ids


letters = st.text(alphabet="abehinortwTF'. ,\n\té12☃字", max_size=60)


@settings(deadline=None, max_examples=200)
@given(letters | st.text(alphabet=st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=20))
def test_ids_are_equal_on_any_text(library_tokenizer, text):
    assume(
        not any(name in text for name in SPECIAL_TOKENS)
    )  # there the library reads the token: `export_model` says so
    ids = TOKENIZER.encode(text)
    assert library_tokenizer.encode(text, add_special_tokens=False) == ids
    assert library_tokenizer.decode(ids) == text


def test_byte_characters_are_distinct_and_printable():
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert characters[ord("A")] == "A" and characters[ord(" ")] == "Ġ" and characters[ord("\n")] == "Ċ"
    assert all(character.isprintable() and not character.isspace() for character in characters)


def test_swap_halves_is_its_own_inverse():
    weight = torch.randn(3 * 4, 5)
    swapped = swap_halves(weight, 4)
    assert swapped[:4].tolist() == weight[[2, 3, 0, 1]].tolist()
    assert torch.equal(swap_halves(swapped, 4), weight)


def test_a_tokenizer_without_special_tokens(tmp_path):
    tokenizer = BPETokenizer.train("ab ab abc", 258)
    export_model(GPT(GPTConfig(258, 8, 1, 1, 4)), tokenizer, tmp_path / "new")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert theirs.config.eos_token_id is None
    assert AutoTokenizer.from_pretrained(tmp_path / "new").encode("ab abc") == tokenizer.encode("ab abc")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "gpt2"


def test_what_no_stock_class_expresses_is_refused(tmp_path):
    for options in (
        {"norm_embedding": False},
        {"norm": "weighted_rms"},
        {"feed_forward": "swiglu"},
        {"qk_norm": False},
        {**RECIPES["llama"], "softcap": 15.0},
        {"window": 16},
        {**RECIPES["qwen3"], "window": 16},
    ):
        model = ModernGPT(ModernConfig(**{**SIZES, **options}))
        with pytest.raises(CourseError, match="no model class"):
            export_model(model, TOKENIZER, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert recipe_name(ModernConfig(**SIZES)) == "nanochat"  # what we train exports


def test_our_own_model_directory_is_not_overwritten(tmp_path):
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(CourseError, match="model directory"):
        export_model(MODELS["gpt"], TOKENIZER, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    with pytest.raises(CourseError, match="258"):
        export_model(MODELS["gpt"], BPETokenizer.train("ab ab abc", 258), tmp_path)


# ---------------------------------------------------------------- weights in: OpenAI's GPT-2


def save_their_gpt2(folder, **sizes):
    """A GPT-2 of the library with random weights, biases and norms too, saved in `folder`."""
    theirs = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 50, "n_positions": 12, "n_layer": 1, "n_head": 1, "n_embd": 8},
        {"vocab_size": 301, "n_positions": 33, "n_layer": 3, "n_head": 5, "n_embd": 40},
        {},  # the real one, of 124 million weights
    ],
    ids=["small", "odd", "124M"],
)
def test_their_gpt2_comes_in_and_goes_out(tmp_path, sizes):
    theirs = save_their_gpt2(tmp_path / "theirs", **sizes)
    ours = load_gpt2(tmp_path / "theirs")
    assert not ours.training
    ids = torch.randint(ours.config.vocab_size, (2, 12))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, rtol=1e-4, atol=1e-4)
    if sizes:
        return
    export_model(ours, gpt2_tokenizer(), tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected)
    read = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert read(TEXT)["input_ids"] == gpt2_tokenizer().encode(TEXT)
    prompt = torch.tensor([gpt2_tokenizer().encode("The lantern")])
    greedy = again.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(greedy, generate(ours, prompt, 8, temperature=0))


def test_names_with_and_without_the_prefix_are_read(tmp_path):
    """OpenAI's upload says "h.0.ln_1.weight" and holds the causal masks; the library says "transformer.h.0...."."""
    sizes = {"vocab_size": 50, "n_positions": 12, "n_layer": 2, "n_head": 2, "n_embd": 8}
    save_their_gpt2(tmp_path, **sizes)
    expected = load_gpt2(tmp_path).state_dict()
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 12, 12)
    save_file(tensors, path)
    loaded = load_gpt2(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def break_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, folder / "model.safetensors")


def widen_config(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"vocab_size": 51}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (break_config, "its model_type is 'llama'"),
        (cut_weights, "cannot be read"),
        (drop_tensor, "lack h.1.mlp.c_fc.bias"),
        (widen_config, r"wte.weight has the shape \(50, 8\), not \(51, 8\)"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    ],
)
def test_what_is_no_gpt2_is_refused(tmp_path, damage, complaint):
    save_their_gpt2(tmp_path, vocab_size=50, n_positions=12, n_layer=2, n_head=2, n_embd=8)
    damage(tmp_path)
    with pytest.raises(CourseError, match=complaint):
        load_gpt2(tmp_path)


def test_without_the_network_a_name_of_the_hub_says_so():
    with pytest.raises(CourseError, match="openai-community/no-such-model is no folder here, and the hub did not"):
        load_gpt2("openai-community/no-such-model")
