"""Grouped-query attention: the compiled step, pieces of any size, and a cache that comes back."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from localr1.models import gqa
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from tests import toy_dense

CONTEXT = 128
IDS = [(7 * i * i + 3 * i) % 256 for i in range(48)]
MODELS = {
    "llama": ("llama", {"num_key_value_heads": 1, "rope": toy_dense.LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 80, "num_attention_heads": 6}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> Transformer:
    architecture, options = MODELS[request.param]
    config = toy_dense.config(architecture, **options)
    folder: Path = toy_dense.hf_folder(tmp_path_factory.mktemp("dense") / "hf", config)
    source = open_source(toy_dense.gguf_file(folder, folder / "toy.gguf"))
    return Transformer(read_config(source), source, CONTEXT)


def run(model: Transformer, pieces: list[list[int]]) -> torch.Tensor:
    """Logits behind every token, read in these pieces."""
    cache, out = model.new_cache(CONTEXT), []
    for ids in pieces:
        *_, hidden = model.layers(ids, cache)
        cache.commit(len(ids))
        out.append(model.head(hidden))
    return torch.cat(out)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_one_token_at_a_time_is_the_same(model: Transformer) -> None:
    """Two orders of the same float32 products: only rounding may differ."""
    pieces = [IDS[:17], *([i] for i in IDS[17:40]), IDS[40:]]
    assert difference(run(model, pieces), run(model, [IDS])) < 2e-5


def test_small_workspaces_change_nothing(model: Transformer, monkeypatch) -> None:
    whole = run(model, [IDS[:10], IDS[10:]])
    monkeypatch.setattr(gqa, "_WORKSPACE", 300)
    assert difference(run(model, [IDS[:10], IDS[10:]]), whole) < 2e-5


def test_a_saved_cache_goes_on(model: Transformer) -> None:
    cache, file = model.new_cache(CONTEXT), io.BytesIO()
    list(model.layers(IDS[:40], cache))
    cache.commit(40)
    cache.save(file, 0, 40)
    file.seek(0)
    other = model.new_cache(CONTEXT)
    other.load(file, 40)
    other.commit(40)
    *_, hidden = model.layers(IDS[40:], other)
    assert difference(model.head(hidden), run(model, [IDS])[40:]) < 2e-5
