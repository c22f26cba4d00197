"""Whole models against transformers in float64, from F32 weights: every routing and attention
shape.
"""

from pathlib import Path

import numpy as np
import pytest

import localr1
from tests import oracles, toy

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
