"""The random models that loading is measured with: R1's shapes, valid blocks, a real spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from cpu_experts import QuantTensor
from localr1 import registry
from localr1.models.dense_config import DenseConfig
from localr1.models.shapes import check_shapes
from localr1.models.source import open_source, read_config
from tools.make_random_dense import make_random_dense
from tools.make_random_model import Tensor, _layers, _numbers, _random_bytes, _tensors

R1 = {"vocab_size": 768, "expert_count": 256}
GIB = 1 << 30


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0"])
@pytest.mark.parametrize("cols", [2048, 7168])
def test_blocks_are_finite_and_spread_like_a_trained_matrix(kind: str, cols: int) -> None:
    tensor = Tensor("x.weight", (3, 8, cols), kind)
    data = b"".join(_random_bytes(tensor, np.random.default_rng(1)))
    assert len(data) == tensor.nbytes
    values = QuantTensor(kind, tensor.shape, (np.frombuffer(data, np.uint8),)).dequantize()
    oracle = gguf.dequantize(np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(values.reshape(-1), oracle.reshape(-1))
    assert np.isfinite(values).all()
    assert values.std() * cols**0.5 == pytest.approx(1, rel=0.1)  # of random blocks, so not exact
    assert abs(values.mean()) * cols**0.5 < 0.1


def test_the_size_is_met_from_below() -> None:
    sizes = {gib: _layers(gib * GIB, R1) for gib in (8, 32, 380)}
    for gib, (moe, dense) in sizes.items():
        total = sum(tensor.nbytes for tensor in _tensors(_numbers(R1, moe, dense)))
        assert 0.95 * gib * GIB < total <= gib * GIB
    assert sizes[8][0] == 1 and 55 <= sizes[380][0] <= 61
    assert _layers(1, R1) == (1, 1)


def test_the_shapes_are_those_of_r1() -> None:
    tensors = {tensor.name: tensor for tensor in _tensors(_numbers(R1, 2, 1))}
    assert tensors["blk.1.ffn_gate_exps.weight"][1:] == ((256, 2048, 7168), "Q4_K")
    assert tensors["blk.1.ffn_down_exps.weight"][1:] == ((256, 7168, 2048), "Q6_K")
    assert tensors["blk.2.ffn_down_exps.weight"].kind == "Q4_K"
    assert tensors["blk.0.attn_k_b.weight"][1:] == ((128, 512, 128), "Q5_0")
    assert tensors["blk.0.ffn_up.weight"].shape == (18432, 7168)
    assert tensors["blk.0.attn_norm.weight"][1:] == ((7168,), "F32")


def test_a_random_dense_model_has_the_published_ones_shapes_and_types(tmp_path: Path) -> None:
    config = DenseConfig.from_hf(registry.entries()["r1-distill-1.5b"].config)
    config = replace(config, n_layers=1, vocab_size=1000)
    source = open_source(make_random_dense(tmp_path / "random.gguf", config))
    assert read_config(source) == config
    assert check_shapes(config, source) == {"F32", "Q4_K", "Q6_K"}
    assert source["blk.0.ffn_up.weight"].shape == (8960, 1536)
    assert source["blk.0.ffn_up.weight"].format.name == "Q4_K"
