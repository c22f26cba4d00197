"""Toy models for tests: random DeepSeek-V2/V3 models in every kind of file we read, in seconds.

    folder = toy.hf_folder(tmp_path / "hf", toy.config(q_lora_rank=None))  # by transformers
    path = toy.gguf(folder, tmp_path / "toy.gguf", kind="Q8_0", layout="kv_b")

The weights are scaled so that activations neither vanish nor explode, with a random router bias, so
that every part of the model leaves its mark on the logits. All have tiny-r1's tokenizer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from localr1.models.config import ModelConfig
from localr1.models.gguf import GGUFFile
from localr1.models.hf_names import hf_names
from tools.convert import convert

TINY_R1 = Path(str(files("localr1") / "tiny" / "tiny-r1.gguf"))
_TOKENIZER = Path(__file__).parent / "data" / "tiny-r1"
SEED = 20250120
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_SIZES: dict[str, Any] = {
    "vocab_size": 768,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 512,
    "rope_scaling": YARN,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_V2 = {"topk_method": "group_limited_greedy", "n_shared_experts": 2, "norm_topk_prob": False}

Config = DeepseekV2Config | DeepseekV3Config


def config(version: int = 3, **overrides: Any) -> Config:
    """A tiny configuration of transformers' DeepSeek `version` 2 or 3.

    `rope_scaling=None` is rope without YaRN.
    """
    values = _SIZES | (_V2 if version == 2 else {"num_mtp_layers": 0}) | overrides
    rope = values.pop("rope_scaling") or {"rope_type": "default", "rope_theta": 10000.0}
    heads = values["num_attention_heads"]
    values |= {"rope_parameters": dict(rope), "num_key_value_heads": heads}
    return (DeepseekV2Config if version == 2 else DeepseekV3Config)(**values)


def hf_folder(
    path: Path, config: Config, dtype: torch.dtype = torch.float32, shard: str = "300KB"
) -> Path:
    """A random model of `config` as transformers saves it, in several shards; with a tokenizer."""
    is_v2 = isinstance(config, DeepseekV2Config)
    model = (DeepseekV2ForCausalLM if is_v2 else DeepseekV3ForCausalLM)(config)
    rng = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            noise = torch.randn(weight.shape, generator=rng)
            weight.copy_(scaled(name, noise))
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    if config.vocab_size == _SIZES["vocab_size"]:
        copy_tokenizer(path)
    return path


def scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Standard normal noise as the values of weight `name`."""
    if name.endswith("e_score_correction_bias"):
        return 0.1 * noise
    if noise.ndim == 1:  # norms
        return 1 + 0.1 * noise
    if "embed_tokens" in name:
        return noise
    return noise / noise.shape[-1] ** 0.5


def gguf(folder: Path, path: Path, kind: str = "F32", **options: Any) -> Path:
    """`folder` as a GGUF file; options of tools.convert.convert (`layout`, `mtp`, ...)."""
    return convert(folder, path, kind, **options)


def fp8_folder(folder: Path, out: Path) -> Path:
    """`folder` as DeepSeek publishes: projections in FP8 e4m3 with a scale per 128x128 block."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    values = json.loads((out / "config.json").read_text())
    values["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (out / "config.json").write_text(json.dumps(values))
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        for name, weight in load_file(shard).items():
            if name.endswith("_proj.weight"):
                tensors[name], tensors[f"{name}_scale_inv"] = _to_fp8(weight.float())
            else:
                tensors[name] = weight
    save_file(tensors, out / "model.safetensors")
    return out


def _to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 values, float32 scale of each 128x128 block, also for the cut blocks at the edges)."""
    rows, cols = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -cols % 128, 0, -rows % 128))
    blocks = padded.unflatten(0, (-1, 128)).unflatten(-1, (-1, 128))  # [R, 128, C, 128]
    scale = blocks.abs().amax((1, 3)) / 448  # 448: the largest e4m3 value
    values = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return values.view(padded.shape)[:rows, :cols].contiguous(), scale


def hf_folder_from_gguf(
    path: Path, out: Path, mtp: bool = False, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A HF folder in `dtype` with the dequantised weights of tiny-r1 or another V3 GGUF.

    `mtp` keeps the multi-token-prediction layer, with its own copy of embedding and head as
    DeepSeek stores it.
    """
    source = GGUFFile.open(path)
    c = ModelConfig.from_gguf(source.metadata, source.tensors)
    n_blocks = c.n_layers + (c.n_mtp_layers if mtp else 0)
    tensors = {
        name: (weight if name.endswith("bias") else weight.to(dtype)).contiguous()
        for name, weight in _hf_tensors(source, c, n_blocks)
    }
    for layer in range(c.n_layers, c.n_layers + (c.n_mtp_layers if mtp else 0)):
        copies = {
            "embed_tokens.weight": "model.embed_tokens.weight",
            "shared_head.head.weight": "lm_head.weight",
        }
        for name, original in copies.items():
            tensors.setdefault(f"model.layers.{layer}.{name}", tensors[original].clone())
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    values = _hf_config(c, source.metadata)
    values |= {
        "torch_dtype": str(dtype).removeprefix("torch."),
        "num_nextn_predict_layers": mtp * c.n_mtp_layers,
    }
    (out / "config.json").write_text(json.dumps(values, indent=1))
    copy_tokenizer(out)
    return out


def _hf_tensors(
    source: GGUFFile, c: ModelConfig, n_blocks: int
) -> Iterator[tuple[str, torch.Tensor]]:
    table = hf_names()
    for name in source.names():
        layer = name.split(".")[1] if name.startswith("blk.") else ""
        if layer and int(layer) >= n_blocks:
            continue
        key = name.replace(f"blk.{layer}.", "blk.{n}.") if layer else name
        if key.endswith("attn_v_b.weight"):
            continue  # joined with its attn_k_b
        if key.endswith("attn_k_b.weight"):
            hf, values = table["blk.{n}.attn_kv_b.weight"], _joined_kv_b(source, name, c)
        else:
            hf, values = table[key], source[name].dequantize().reshape(source.tensors[name].shape)
        weight = torch.from_numpy(values)
        if "{e}" not in hf:
            yield hf.format(n=layer), weight
            continue
        for e in range(weight.shape[0]):
            yield hf.format(n=layer, e=e), weight[e].clone()


def _joined_kv_b(source: GGUFFile, k_name: str, c: ModelConfig) -> np.ndarray:
    """HF's kv_b_proj [heads * (nope + v), rank] from attn_k_b and attn_v_b."""
    k = source[k_name].dequantize().transpose(0, 2, 1)
    v = source[k_name.replace("k_b", "v_b")].dequantize()
    return np.concatenate([k, v], axis=1).reshape(-1, c.kv_lora_rank)


def _hf_config(c: ModelConfig, metadata: dict[str, Any]) -> dict[str, Any]:
    """config.json of a V3 model, in the words of DeepSeek's own files."""
    rope = c.rope
    yarn = {
        "type": "yarn",
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_context,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "mscale": rope.mscale,
        "mscale_all_dim": rope.mscale_all_dim,
    }
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "moe_intermediate_size": c.moe_intermediate_size,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_heads,
        "q_lora_rank": c.q_lora_rank or None,
        "kv_lora_rank": c.kv_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "v_head_dim": c.v_head_dim,
        "first_k_dense_replace": c.n_dense_layers,
        "n_routed_experts": c.n_routed_experts,
        "n_shared_experts": c.n_shared_experts,
        "num_experts_per_tok": c.n_experts_per_tok,
        "n_group": c.n_group,
        "topk_group": c.topk_group,
        "scoring_func": c.scoring_func,
        "topk_method": c.topk_method,
        "norm_topk_prob": c.norm_topk_prob,
        "routed_scaling_factor": c.routed_scaling_factor,
        "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_context,
        "rope_theta": rope.theta,
        "rope_scaling": yarn if rope.factor > 1 else None,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }


def copy_tokenizer(folder: Path) -> None:
    """Put tiny-r1's tokenizer beside a model of its vocabulary."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_TOKENIZER / name, folder / name)
