"""Out into the world: our weights and tokenizer in the files that the transformers library loads.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("exported")

The library itself is not needed to write them: three JSON files and one safetensors file.
"""

import json
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

MODEL_CLASSES = {"nanochat": "NanoChatForCausalLM", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# The chat template in Jinja, as transformers' apply_chat_template wants it: roles are "user" and "assistant".
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


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
    """Our tensors under GPT2LMHeadModel's names. GPT-2 stores its matrices transposed: (inputs, outputs)."""
    parts = {
        "norm1": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "norm2": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    tensors: dict[str, Any] = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "transformer.ln_f.weight": model.final_norm.weight,
        "transformer.ln_f.bias": model.final_norm.bias,
    }
    for layer, block in enumerate(model.blocks):
        for ours, theirs in parts.items():
            part: Any = block.get_submodule(ours)  # PyTorch types every part as a tensor or a module
            tensors[f"transformer.h.{layer}.{theirs}.weight"] = part.weight.T if part.weight.ndim == 2 else part.weight
            tensors[f"transformer.h.{layer}.{theirs}.bias"] = part.bias
    return tensors


def recipe_name(config: ModernConfig) -> str:
    """Which of RECIPES a config follows. Raises CourseError when no class of transformers can hold the model."""
    for name, recipe in RECIPES.items():
        soft_cap_fits = config.softcap is None or name == "nanochat"
        if soft_cap_fits and all(getattr(config, part) == choice for part, choice in recipe.items()):
            return name
    raise CourseError(
        f"no model class of transformers has norm={config.norm}, qk_norm={config.qk_norm}, "
        f"feed_forward={config.feed_forward}, norm_embedding={config.norm_embedding} and softcap={config.softcap} "
        f"together: to export, train one of {', '.join(RECIPES)}"
    )


def modern_config(config: ModernConfig) -> dict[str, Any]:
    """The fields of transformers' NanoChatConfig, LlamaConfig or Qwen3Config."""
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
    return fields | ({"final_logit_softcapping": config.softcap} if name == "nanochat" else {})


def swap_halves(weight: Tensor, head_width: int) -> Tensor:
    """Exchange the two halves of every head's rows in a query or key matrix (H*K, D).

    NanoChat turns its pairs the other way round. With both halves exchanged, its turn does what ours does, and the
    dot products stay the same.
    """
    first, second = weight.unflatten(0, (-1, head_width)).chunk(2, dim=1)  # (H, K/2, D) each
    return torch.cat((second, first), dim=1).flatten(0, 1)  # (H*K, D)


def modern_weights(model: ModernGPT) -> dict[str, Tensor]:
    """Our tensors under the names that the NanoChat, Llama and Qwen3 classes share."""
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
