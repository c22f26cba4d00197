"""Latent attention: its two forms agree, in one piece or in many, cached or read at once."""

import pytest
import torch

from localr1.models import attention
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from tests import toy


@pytest.fixture(scope="module", params=["kv_b", "k_b+v_b"])
def model(request, tmp_path_factory) -> Transformer:
    folder = toy.hf_folder(tmp_path_factory.mktemp("hf"), toy.config())
    source = open_source(toy.gguf(folder, folder / "toy.gguf", layout=request.param))
    return Transformer(read_config(source), source, context=128)


def run(model: Transformer, pieces: list[list[int]], absorb_up_to: int) -> torch.Tensor:
    """Logits behind every token, read in these pieces."""
    cache, out = model.new_cache(128), []
    for block in model.blk:
        block.attention.absorb_up_to = absorb_up_to
    for ids in pieces:
        *_, hidden = model.layers(ids, cache)
        cache.commit(len(ids))
        out.append(model.head(hidden))
    return torch.cat(out)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


IDS = [(7 * i * i + 3 * i) % 256 for i in range(48)]


def test_absorbed_and_expanded_agree(model: Transformer):
    """Two orders of the same float32 products: only rounding may differ."""
    assert difference(run(model, [IDS], 1000), run(model, [IDS], 0)) < 2e-5


@pytest.mark.parametrize("absorb_up_to", [0, 1000])
def test_one_token_at_a_time_is_the_same(model: Transformer, absorb_up_to: int):
    pieces = [IDS[:17], *([i] for i in IDS[17:40]), IDS[40:]]
    assert difference(run(model, pieces, absorb_up_to), run(model, [IDS], absorb_up_to)) < 2e-5


@pytest.mark.parametrize("absorb_up_to", [0, 1000])
def test_small_workspaces_change_nothing(model: Transformer, absorb_up_to: int, monkeypatch):
    whole = run(model, [IDS[:10], IDS[10:]], absorb_up_to)
    monkeypatch.setattr(attention, "_WORKSPACE", 300)
    assert difference(run(model, [IDS[:10], IDS[10:]], absorb_up_to), whole) < 2e-5
