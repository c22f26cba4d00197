"""Whole models against transformers in float64, from F32 weights: every routing and attention
shape.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import localr1
from localr1.models.safetensors import HFFolder
from tests import oracles, toy, toy_dense

SHAPES = {
    "v3": {},
    "v3, no q_lora": {"q_lora_rank": None},
    "v3, one group": {"n_group": 1, "topk_group": 1},
    "v3, 6 heads": {"num_attention_heads": 6, "num_key_value_heads": 6},
    "v3, 27 layers": {"num_hidden_layers": 27},
    "v3, no YaRN": {"rope_scaling": None},
    "v3, weights not normalised": {"norm_topk_prob": False},
    "v2, greedy": {"version": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "v2, groups": {"version": 2, "topk_method": "group_limited_greedy"},
    "v2, no q_lora": {"version": 2, "q_lora_rank": None, "topk_method": "greedy"},
}


DENSE = {
    "llama": ("llama", {}),
    "llama, one head of keys": ("llama", {"num_key_value_heads": 1, "head_dim": 64}),
    "llama, no groups": ("llama", {"num_key_value_heads": 4}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama 3's rope": ("llama", {"rope": toy_dense.LLAMA3}),
    "deepseek coder's rope": ("llama", {"rope": toy_dense.LINEAR}),
    "qwen2": ("qwen2", {}),
    "qwen2, YaRN": ("qwen2", {"rope": toy_dense.YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 80, "num_attention_heads": 6}),
    "qwen3, YaRN": ("qwen3", {"rope": toy_dense.YARN}),
    "qwen3, linear": ("qwen3", {"rope": toy_dense.LINEAR}),
    "qwen3, attention_factor": ("qwen3", {"rope": toy_dense.YARN | {"attention_factor": 1.0}}),
}


def relative_error(own: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(own - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_from_f32(shape: str, tmp_path: Path):
    """300 tokens, past the absorbed form's limit and past the toy's original context."""
    config = toy.config(**SHAPES[shape])
    folder = toy.hf_folder(tmp_path / "hf", config)
    ids = np.random.default_rng(5).integers(0, config.vocab_size, 300).tolist()
    [reference] = oracles.transformers_logits(folder, [ids])
    logits = localr1.load(folder).logits(ids)
    assert relative_error(logits, reference) <= 1e-4
    for layout in ("kv_b", "k_b+v_b"):
        path = toy.gguf(folder, tmp_path / f"{layout}.gguf", layout=layout)
        assert relative_error(localr1.load(path).logits(ids), reference) <= 1e-4


@pytest.mark.parametrize("shape", DENSE)
def test_dense_logits_from_f32(shape: str, tmp_path: Path):
    """300 tokens, past the toy's original context, and the last ones again one by one."""
    architecture, options = DENSE[shape]
    config = toy_dense.config(architecture, **options)
    folder = toy_dense.hf_folder(tmp_path / "hf", config)
    ids = np.random.default_rng(5).integers(0, config.vocab_size, 300).tolist()
    [reference] = oracles.transformers_logits(folder, [ids])
    for path in (folder, toy_dense.gguf_file(folder, tmp_path / "toy.gguf")):
        engine = localr1.load(path).engine
        assert relative_error(engine.logits(ids), reference) <= 1e-4
        *_, behind = engine.prefill(ids[:250])
        steps = [
            behind.clone().numpy(),
            *(engine.step(token).clone().numpy() for token in ids[250:]),
        ]
        assert relative_error(np.concatenate(steps), reference[249:]) <= 1e-4


@pytest.mark.parametrize("shape", DENSE)
def test_dense_files_mean_what_llama_cpp_reads_in_them(shape: str, tmp_path: Path):
    """Whose cache is float16 here: looser than against transformers, and another reader's view."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    architecture, options = DENSE[shape]
    folder = toy_dense.hf_folder(tmp_path / "hf", toy_dense.config(architecture, **options))
    path = toy_dense.gguf_file(folder, tmp_path / "toy.gguf")
    ids = np.random.default_rng(5).integers(0, 768, 300).tolist()
    [theirs] = oracles.llama_cpp_logits(path, [ids])
    assert relative_error(localr1.load(path).logits(ids), theirs) <= 1e-3


def test_logits_from_fp8(tmp_path: Path):
    """DeepSeek's FP8 folder gives the logits of the values that it stands for, in float64.

    One head has 32 + 32 rows of `kv_b`, so its cut into heads goes through a scale's block.
    """
    folder = toy.fp8_folder(toy.hf_folder(tmp_path / "hf", toy.config()), tmp_path / "fp8")
    source = HFFolder.open(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("*.safetensors"))
    (plain / "config.json").write_text(json.dumps(config))
    tensors = {}
    stored = load_file(folder / "model.safetensors")
    for name, weight in stored.items():
        if not name.endswith("_scale_inv"):
            tensors[name] = weight
        if weight.dtype == torch.float8_e4m3fn:
            scale = stored[f"{name}_scale_inv"]
            rows, cols = weight.shape
            spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
            tensors[name] = weight.float() * spread
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(5).integers(0, 768, 200).tolist()
    [reference] = oracles.transformers_logits(plain, [ids])
    assert source["blk.0.attn_kv_b.weight"].format.name == "FP8_E4M3"
    assert relative_error(localr1.load(folder).logits(ids), reference) <= 1e-4
