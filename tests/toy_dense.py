"""Toy dense models for tests: random Llamas, Qwen2s and Qwen3s as folders and as GGUF files.

    folder = toy_dense.hf_folder(tmp_path / "hf", toy_dense.config("qwen3"))  # by transformers
    path = toy_dense.gguf_file(folder, tmp_path / "toy.gguf")

The GGUF is written with gguf-py by what llama.cpp's converter does: rows of a Llama's queries and
keys are permuted, and Llama 3's scaling becomes a tensor of factors. llama.cpp reads these files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from localr1.models.dense_config import HF_NAMES, ROPE_FREQS, DenseConfig
from localr1.models.gguf import GGUFFile
from localr1.models.hf_names import hf_names
from localr1.models.safetensors import HFFolder
from localr1.models.source import read_config
from tests import toy

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}  # DeepSeek Coder's
_SIZES: dict[str, Any] = {
    "vocab_size": 768,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_CLASSES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}

Config = LlamaConfig | Qwen2Config | Qwen3Config


def config(architecture: str, rope: dict[str, Any] | None = None, **overrides: Any) -> Config:
    """A tiny configuration of transformers' class; `head_dim` is 32 where nothing else is said."""
    values = _SIZES | {"head_dim": 32} | overrides
    rope = rope or {"rope_type": "default", "rope_theta": 10000.0}
    return _CLASSES[architecture](**values, rope_parameters=dict(rope))


def hf_folder(path: Path, config: Config, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of `config` as transformers saves it, with tiny-r1's tokenizer."""
    model = AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(toy.SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=rng)
            weight.copy_(noise if name.endswith("bias") else toy.scaled(name, noise))
    model.to(dtype).save_pretrained(path, max_shard_size="300KB")
    toy.copy_tokenizer(path)
    return path


def gguf_file(folder: Path, path: Path, kind: str = "F32") -> Path:
    """`folder` as a GGUF file whose matrices are of `kind` (a type that gguf-py can make)."""
    weights = HFFolder.open(folder)
    values = json.loads((folder / "config.json").read_text())
    c = read_config(weights)
    writer = gguf.GGUFWriter(path, c.architecture)
    _add_numbers(writer, values)
    tiny = GGUFFile.open(toy.TINY_R1).metadata.items()
    _add_values(writer, {key: value for key, value in tiny if key.startswith("tokenizer.")})
    heads = {"attn_q": c.n_heads, "attn_k": c.n_kv_heads} if c.architecture == "llama" else {}
    for name in weights.names():
        values_of = weights[name].dequantize()
        stem = name.rpartition(".")[0].rpartition(".")[2]
        if stem in heads:
            values_of = _permuted(values_of, heads[stem])
        if values_of.shape[0] == 1:
            writer.add_tensor(name, values_of[0])
        else:
            qtype = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values_of, qtype), raw_dtype=qtype)
    if values["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor(ROPE_FREQS, _llama3_factors(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_f32(path: Path, out: Path) -> Path:
    """The same GGUF with its weights dequantised: no runner rounds activations for those."""
    source = GGUFFile.open(path)
    writer = gguf.GGUFWriter(out, source.metadata["general.architecture"])
    kept = {k: v for k, v in source.metadata.items() if k != "general.architecture"}
    _add_values(writer, kept | {"general.file_type": 0})
    for name in source.names():
        writer.add_tensor(name, source[name].dequantize().reshape(source.tensors[name].shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_values(writer: gguf.GGUFWriter, values: dict[str, Any]) -> None:
    """Metadata as read; every whole number as the unsigned one that llama.cpp asks for."""
    for key, value in values.items():
        whole = type(value) is int
        kind = gguf.GGUFValueType.UINT32 if whole else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)


def hf_folder_from_gguf(path: Path, out: Path) -> Path:
    """A HF folder in F32 with the dequantised weights of a dense GGUF, for transformers."""
    source = GGUFFile.open(path)
    c = read_config(source)
    assert isinstance(c, DenseConfig) and not c.rope.divisors and c.rope.factor == 1
    heads = {"attn_q": c.n_heads, "attn_k": c.n_kv_heads} if c.rope.interleaved else {}
    table, tensors = hf_names(), {}
    for name in source.names():
        layer = name.split(".")[1] if name.startswith("blk.") else ""
        key = name.replace(f"blk.{layer}.", "blk.{n}.") if layer else name
        values = source[name].dequantize().reshape(source.tensors[name].shape)
        stem = name.rpartition(".")[0].rpartition(".")[2]
        if stem in heads:
            values = _unpermuted(values, heads[stem])
        tensors[table[key].format(n=layer)] = torch.from_numpy(values)
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    sizes = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_context,
        "rms_norm_eps": c.rms_norm_eps,
        "tie_word_embeddings": c.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope.theta},
    }
    _CLASSES[c.architecture](**sizes).save_pretrained(out)
    values = json.loads((out / "config.json").read_text())
    names = {name: hf for hf, name in HF_NAMES.items()}
    values["architectures"] = [names[c.architecture]]
    (out / "config.json").write_text(json.dumps(values))
    return out


def _unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """`_permuted` undone."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _add_numbers(writer: gguf.GGUFWriter, values: dict[str, Any]) -> None:
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_key_length(values["head_dim"])
    writer.add_value_length(values["head_dim"])
    writer.add_rope_dimension_count(values["head_dim"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_vocab_size(values["vocab_size"])
    rope = values["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        own = 1 + 0.1 * math.log(rope["factor"])  # what llama.cpp multiplies the key's value by
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor", own) / own)


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to pairs, as the converter orders them for rope type NORM."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _llama3_factors(values: dict[str, Any]) -> np.ndarray:
    """The divisors that the converter writes, by the formula of Llama 3.1's own code."""
    rope, dim = values["rope_parameters"], values["head_dim"]
    old = rope["original_max_position_embeddings"]
    low, high = old / rope["low_freq_factor"], old / rope["high_freq_factor"]
    factors = []
    for freq in 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / freq
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)
