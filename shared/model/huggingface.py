"""In from the world and out again: OpenAI's weights in our GPT, and our models in files that transformers loads.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("exported")

The library itself is not needed, neither to read them nor to write them: JSON files and one safetensors file.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from shared.errors import CourseError
from shared.files import write_atomically
from shared.model.gpt import GPT, GPTConfig, LanguageModel
from shared.model.modern import RECIPES, ModernConfig, ModernGPT
from shared.text.bpe import BPETokenizer, list_merges
from shared.text.template import ASSISTANT, END, END_OF_TEXT, SPECIAL_TOKENS


def gpt2_names(n_layers: int) -> dict[str, str]:
    """Name of each of our tensors -> its name in OpenAI's files, as GPT2LMHeadModel has them, too."""
    parts = {
        "norm1": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "norm2": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    names = {"token_embedding.weight": "wte.weight", "position_embedding.weight": "wpe.weight"}
    names |= {f"final_norm.{kind}": f"ln_f.{kind}" for kind in ("weight", "bias")}
    for layer in range(n_layers):
        for ours, theirs in parts.items():
            names |= {f"blocks.{layer}.{ours}.{kind}": f"h.{layer}.{theirs}.{kind}" for kind in ("weight", "bias")}
    return names


def turn_matrix(name: str, tensor: Tensor) -> Tensor:
    """The tensor of that name in the other library's layout: GPT-2 stores the matrices of its blocks transposed,
    (inputs, outputs). Embeddings and vectors stay as they are, and turning twice gives the same back."""
    return tensor.T if name.startswith("blocks.") and tensor.ndim == 2 else tensor


def read_gpt2_config(fields: Mapping[str, Any]) -> GPTConfig:
    """Our config from the fields of a GPT-2's config.json. Raises CourseError for a model of another design."""
    expected = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    for name, value in expected.items():
        if fields.get(name) != value:
            raise CourseError(f"its {name} is {fields.get(name)!r}, not {value!r}: only a GPT-2 fits into our GPT")
    try:
        sizes = (fields[name] for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"))
        return GPTConfig(*sizes)
    except KeyError as error:
        raise CourseError(f"it does not say {error}") from None


def fill_gpt(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Copy GPT-2's tensors, under OpenAI's names or transformers', into our model, name by name.

    Tensors that we compute instead (the causal mask, the tied output layer) are passed over. Raises CourseError for
    one that is missing or of another shape; the model is then unchanged.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        source = gpt2_names(model.config.n_layers)[name]
        if source not in theirs:
            raise CourseError(f"the weights lack {source}: is the file complete?")
        weights[name] = turn_matrix(name, theirs[source])
        if weights[name].shape != parameter.shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)}"
            raise CourseError(f"{source} has the shape {shapes}: do config and weights belong together?")
    model.load_state_dict(weights)


GPT2_FILES = ("config.json", "model.safetensors")


def find_gpt2(source: str | Path) -> Path:
    """The folder with GPT2_FILES: `source` itself, or what the Hugging Face hub has under that name.

    From the hub the files are downloaded once, and kept. Raises CourseError when neither works.
    """
    folder = Path(source)
    if folder.is_dir():
        missing = [name for name in GPT2_FILES if not (folder / name).is_file()]
        if missing:
            raise CourseError(f"{folder} has no {missing[0]}: give a folder with {' and '.join(GPT2_FILES)}")
        return folder
    try:
        from huggingface_hub import snapshot_download  # comes with transformers, and only a download needs it

        return Path(snapshot_download(str(source), allow_patterns=list(GPT2_FILES)))
    except Exception as error:  # the library raises a dozen kinds, from a wrong name to a network that is down
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CourseError(f"{source} is no folder here, and the hub did not give it ({reason})") from error


def load_gpt2(source: str | Path = "openai-community/gpt2") -> GPT:
    """GPT-2 with OpenAI's weights (or any others in that format) as our GPT, in evaluation mode.

    source: a folder with config.json and model.safetensors, or a name on the Hugging Face hub, which needs the network
    once (about 550 MB for the smallest). The tokenizer is `shared.text.bpe.gpt2_tokenizer`. Raises CourseError when
    the files cannot be had or are no GPT-2.
    """
    folder = find_gpt2(source)
    try:
        model = GPT(read_gpt2_config(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
        fill_gpt(model, safetensors.torch.load_file(folder / "model.safetensors"))
    except CourseError as error:
        raise CourseError(f"{folder}: {error}") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CourseError(f"{folder} cannot be read ({error}): is a file damaged?") from None
    return model.eval()


def gpt2_config(config: GPTConfig) -> dict[str, Any]:
    """The fields of transformers' GPT2Config."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": True,
    }


def gpt2_weights(model: GPT) -> dict[str, Tensor]:
    """Our tensors under GPT2LMHeadModel's names and in its layout."""
    tensors = dict(model.named_parameters())
    names = gpt2_names(model.config.n_layers)
    return {f"transformer.{theirs}": turn_matrix(ours, tensors[ours]) for ours, theirs in names.items()}


# The chat template in Jinja, as transformers' apply_chat_template wants it: roles are "user" and "assistant".
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabulary files.

    Bytes that are printable in Latin-1 stand for themselves; the other 68 take the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def tokenizer_file(tokenizer: BPETokenizer) -> dict[str, Any]:
    """The tokenizer in the format of the `tokenizers` library: vocabulary, merges, and GPT-2's way to split text."""
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": name, **flags} for name, number in tokenizer.special_tokens.items()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {spell(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.special_tokens
    merges = [[spell(left), spell(right)] for left, right in list_merges(tokenizer.ranks)]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        # ignore_merges: a word that is a token is encoded as that token, without looking at the merges
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": True},
    }


def tokenizer_config(tokenizer: BPETokenizer, context: int) -> dict[str, Any]:
    """What AutoTokenizer must know besides: the class, the end of a text, how a conversation is laid out."""
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if END_OF_TEXT in tokenizer.special_tokens:
        fields |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    if all(name in tokenizer.special_tokens for name in SPECIAL_TOKENS):
        fields["chat_template"] = CHAT_TEMPLATE
    return fields


MODEL_CLASSES = {
    "nanochat": "NanoChatForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}


def recipe_name(config: ModernConfig) -> str:
    """Which of RECIPES a config follows. Raises CourseError when no class of transformers can hold the model."""
    for name, recipe in RECIPES.items():
        fits = config.softcap is None or name == "nanochat"
        fits = fits and (config.window is None) == ("window" not in recipe)  # how wide a window is, is free
        if fits and all(getattr(config, part) == choice for part, choice in recipe.items() if part != "window"):
            return name
    raise CourseError(
        f"no model class of transformers has norm={config.norm}, qk_norm={config.qk_norm}, "
        f"feed_forward={config.feed_forward}, norm_embedding={config.norm_embedding}, softcap={config.softcap} "
        f"and window={config.window} together: to export, train one of {', '.join(RECIPES)}"
    )


def modern_config(config: ModernConfig) -> dict[str, Any]:
    """The fields of transformers' NanoChatConfig, LlamaConfig, Qwen3Config or MistralConfig."""
    name = recipe_name(config)
    fields = {
        "architectures": [MODEL_CLASSES[name]],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.columns_per_head,
        "hidden_act": "relu2" if name == "nanochat" else "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "attention_bias": False,
        "tie_word_embeddings": config.tied,
        "pad_token_id": None,
    }
    if name == "nanochat":
        fields["final_logit_softcapping"] = config.softcap
    if name == "mistral":
        fields["sliding_window"] = config.window
    return fields


def swap_halves(weight: Tensor, head_width: int) -> Tensor:
    """Exchange the two halves of every head's rows in a query or key matrix (H*K, D).

    NanoChat turns its pairs the other way round. With both halves exchanged, its turn does what ours does, and the
    dot products stay the same.
    """
    first, second = weight.unflatten(0, (-1, head_width)).chunk(2, dim=1)  # (H, K/2, D) each
    return torch.cat((second, first), dim=1).flatten(0, 1)  # (H*K, D)


def modern_weights(model: ModernGPT) -> dict[str, Tensor]:
    """Our tensors under the names that the NanoChat, Llama, Qwen3 and Mistral classes share."""
    name = recipe_name(model.config)
    tensors: dict[str, Any] = {"model.embed_tokens.weight": model.token_embedding.weight}
    block: Any
    for layer, block in enumerate(model.blocks):
        attention, feed_forward = block.attention, block.feed_forward
        rows = [heads * attention.head_width for heads in attention.heads]
        q, k, v = attention.qkv.weight.split(rows)  # (H*K, D), (H_kv*K, D), (H_kv*K, D)
        if name == "nanochat":
            q, k = swap_halves(q, attention.head_width), swap_halves(k, attention.head_width)
        parts = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        parts["self_attn.o_proj"] = attention.out.weight
        if name == "nanochat":
            parts |= {"mlp.fc1": feed_forward.up.weight, "mlp.fc2": feed_forward.down.weight}
        else:
            gate, up = feed_forward.up.weight.chunk(2)  # (hidden, D) each
            parts |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": feed_forward.down.weight}
            parts |= {"input_layernorm": block.norm1.weight, "post_attention_layernorm": block.norm2.weight}
        if name == "qwen3":
            parts |= {"self_attn.q_norm": attention.q_norm.weight, "self_attn.k_norm": attention.k_norm.weight}
        tensors |= {f"model.layers.{layer}.{part}.weight": tensor for part, tensor in parts.items()}
    if name != "nanochat":
        tensors["model.norm.weight"] = model.final_norm.weight
    return tensors if model.config.tied else tensors | {"lm_head.weight": model.head.weight}


def write_bytes(content: bytes, file: BinaryIO) -> None:
    """What `write_atomically` calls with the open file."""
    file.write(content)


def export_model(model: LanguageModel, tokenizer: BPETokenizer, directory: str | Path) -> None:
    """Write a folder from which transformers' AutoModelForCausalLM and AutoTokenizer load the model.

    One thing differs there: the text of a special token, such as "<|end|>", is read as that token, where our `encode`
    reads plain characters. Raises CourseError when the stock classes cannot express the model, when the tokenizer is
    not the model's, when the folder is one of our own model directories, whose files have the same names, and when a
    file cannot be written.
    """
    directory = Path(directory)
    if (directory / "training.json").exists():
        raise CourseError(f"{directory} is a model directory of ours, whose files would be lost: choose another folder")
    if tokenizer.vocab_size != model.config.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        raise CourseError(f"the tokenizer has {sizes}: export a model with the tokenizer it was trained on")
    if isinstance(model, GPT):
        config, weights = gpt2_config(model.config), gpt2_weights(model)
    elif isinstance(model, ModernGPT):
        config, weights = modern_config(model.config), modern_weights(model)
    else:
        raise CourseError(f"{type(model).__name__} has no counterpart in transformers: export a GPT or a ModernGPT")
    end = tokenizer.special_tokens.get(END_OF_TEXT)
    stops = [number for name, number in tokenizer.special_tokens.items() if name in (END_OF_TEXT, END)]
    files = {
        "config.json": config | {"dtype": "float32", "bos_token_id": end, "eos_token_id": end},
        "generation_config.json": {"bos_token_id": end, "eos_token_id": stops or None},
        "tokenizer.json": tokenizer_file(tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer, model.config.context),
    }
    contents = {name: json.dumps(fields, indent=2, ensure_ascii=False).encode() for name, fields in files.items()}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    contents["model.safetensors"] = safetensors.torch.save(tensors, metadata={"format": "pt"})
    for name, content in contents.items():
        write_atomically(directory / name, partial(write_bytes, content))
