"""What a GPU holds of a model's weights is what the plan counts, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cpu_experts import ExpertBank
from localr1.gpu.weights import GpuWeight
from localr1.models import inventory
from localr1.models.attention import HeadProjections
from localr1.models.config import ModelConfig
from localr1.models.gpu import GpuParts
from localr1.models.gpu_mla import GpuMLA, _transposed
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from offload.placement import Kind, Tier
from tests import oracles, toy, toy_dense
from tests.gpu.test_model import CONTEXT, PLACES

FULL_BLOCKS = {  # of every kind of quant, as in R1; scales of FP8 lie in keys or in values
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256,
    "q_lora_rank": 256, "kv_lora_rank": 256, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "num_hidden_layers": 2,
}  # fmt: skip


def folder(at: Path, **sizes: int) -> Path:
    return toy.hf_folder(at / "hf", toy.config(**({"num_hidden_layers": 2} | sizes)))


MODELS: dict[str, Callable[[Path], Path]] = {
    "new, Q8_0": lambda at: toy.gguf(folder(at), at / "m.gguf", "Q8_0", layout="k_b+v_b"),
    "old, Q8_0": lambda at: toy.gguf(folder(at), at / "m.gguf", "Q8_0", layout="kv_b"),
    "old, F32": lambda at: toy.gguf(folder(at), at / "m.gguf", "F32", layout="kv_b"),
    "old, Q4_K_M": lambda at: oracles.quantize(
        toy.gguf(folder(at, **FULL_BLOCKS), at / "f32.gguf", layout="kv_b"),
        at / "m.gguf", "Q4_K_M",
    ),
    "BF16 folder": lambda at: toy.hf_folder(at, toy.config(), torch.bfloat16),
    "FP8 folder": lambda at: toy.fp8_folder(folder(at, **FULL_BLOCKS), at / "fp8"),
    "FP8 folder, cut": lambda at: toy.fp8_folder(folder(at), at / "fp8"),
    "qwen2 folder": lambda at: toy_dense.hf_folder(
        at, toy_dense.config("qwen2"), torch.bfloat16
    ),
}  # fmt: skip


def held(part: object) -> int:
    """Bytes of the weights on the GPU in a part of a model, or in a list of them."""
    if isinstance(part, GpuWeight):
        return part.nbytes
    if isinstance(part, torch.Tensor):
        return part.nbytes if part.dtype == torch.float32 else 0  # else an expert's number
    if isinstance(part, list):
        return sum(map(held, part))
    ours = type(part).__module__.startswith("localr1.models")
    if not ours or isinstance(part, GpuParts | ExpertBank) or not hasattr(part, "__dict__"):
        return 0
    return sum(map(held, vars(part).values()))


@pytest.mark.parametrize("model", MODELS)
def test_planned_is_held(model: str, device: str, tmp_path: Path) -> None:
    source = open_source(MODELS[model](tmp_path))
    config = read_config(source)
    for on_gpu in (PLACES["experts in RAM"], PLACES["all on the GPU"]):
        parts = GpuParts(config, CONTEXT, device, on_gpu)
        made = Transformer(config, source, CONTEXT, parts)
        planned = sum(
            weight.bytes_in(Tier.GPU)
            for weight in inventory.from_source(source, config).weights
            if on_gpu(weight.name) and weight.kind not in (Kind.EMBEDDING, Kind.UNUSED)
        )
        assert held([*made.blk, made.output_norm, made.output]) == planned


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_keys_of_floats_are_turned_as_they_are(kind: str, tmp_path: Path) -> None:
    path = toy.gguf(folder(tmp_path), tmp_path / "m.gguf", kind, layout="kv_b")
    source = open_source(path)
    config = read_config(source)
    assert isinstance(config, ModelConfig)
    k = HeadProjections(config, source, "blk.1").k
    turned = _transposed(k)
    assert turned.format.name == kind == inventory.keys_on_gpu(kind, config)
    np.testing.assert_array_equal(turned.dequantize(), k.dequantize().transpose(0, 2, 1))


def test_keys_of_the_old_layout_are_counted_in_the_form_that_they_have(tmp_path: Path) -> None:
    for model in ("old, Q8_0", "old, F32", "FP8 folder, cut"):
        at = tmp_path / model
        at.mkdir()
        source = open_source(MODELS[model](at))
        config = read_config(source)
        assert isinstance(config, ModelConfig)
        name = source["blk.1.attn_kv_b.weight"].format.name
        made = GpuMLA(GpuParts(config, CONTEXT, "cpu"), config, source, 1)
        assert made.k.format == inventory.keys_on_gpu(name, config)
