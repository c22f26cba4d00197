"""A dense FFN in RAM that a GPU asks for is the one of a model on the CPU, on AMX too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpu_experts import ExpertBank
from localr1.gpu.activations import Activations
from localr1.models import gpu_experts
from localr1.models.architecture import Config, config_from_hf
from localr1.models.experts import MLP
from localr1.models.gpu_experts import Copied, RamMLP, Stage
from tests import toy_dense
from tests.cpu_experts.blocks import random_tensor

HIDDEN, INTER = 256, 512  # AMX takes them


def dense_config() -> Config:
    values = toy_dense.config("qwen2", hidden_size=HIDDEN, intermediate_size=INTER).to_dict()
    return config_from_hf(values | {"architectures": ["Qwen2ForCausalLM"]})


@pytest.mark.parametrize("n_tokens", [1, 100, 250])
def test_both_compute_the_same(n_tokens: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, though the GPU's question is answered piece by piece."""
    rng = np.random.default_rng(3)
    gate, up = (random_tensor("Q4_K", (INTER, HIDDEN), rng) for _ in "gu")
    bank = ExpertBank(gate, up, random_tensor("Q6_K", (HIDDEN, INTER), rng))
    stage = Stage(dense_config(), torch.device(device))
    x = torch.randn(n_tokens, HIDDEN)
    expected = MLP(bank)(x, x)
    monkeypatch.setattr(gpu_experts, "_DENSE_PIECE", 100)
    asked = RamMLP(stage, 1, bank)(Activations(x.to(device)), x.to(device))
    assert isinstance(asked, Copied)
    np.testing.assert_array_equal(asked.wait().cpu().numpy(), expected.numpy())


def test_what_a_graph_reads_stays_where_it_is(device: str) -> None:
    """A captured token has its address, whatever prompts come later."""
    stage = Stage(dense_config(), torch.device(device))
    places = [part.data_ptr() for part in stage.only_expert(1)]
    others = [stage.only_expert(n) for n in range(2, 30)]
    assert [part.data_ptr() for part in stage.only_expert(1)] == places
    assert all(ids.sum() == 0 and weights.sum() == len(ids) for ids, weights in others)
