"""Folders of safetensors beside a GPU: RAM gets what the plan puts there, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from localr1.engine import load
from localr1.events import Progress
from localr1.models import inventory
from localr1.models.gpu import GpuParts
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from offload.hardware import on_paper
from offload.placement import Placement, Tier
from offload.planner import plan
from offload.syscalls import PAGE
from tests import toy, toy_dense
from tests.gpu.test_model import CONTEXT, IDS, PLACES

FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "deepseek": (
        lambda at: toy.hf_folder(at / "hf", toy.config(num_hidden_layers=2)),
        "experts in RAM",
    ),
    "qwen3": (
        lambda at: toy_dense.hf_folder(
            at / "hf", toy_dense.config("qwen3", num_hidden_layers=2, vocab_size=256)
        ),
        "all FFNs in RAM",
    ),
}


def placed(path: Path, on_gpu: Callable[[str], bool]) -> Placement:
    """A plan with a GPU, of which it gets what `on_gpu` says: a toy's FFNs would fit it too."""
    source = open_source(path)
    stock = inventory.from_source(source, read_config(source))
    machine = on_paper(vram=24 << 30, ram=64 << 30)
    found = plan(stock.weights, machine, CONTEXT, stock.demands, prefer_gpu=True)
    assert found.gpu
    in_ram = {"token_embd.weight"} | {name for name in source.names() if not on_gpu(name)}
    tiers = {name: Tier.RAM if name in in_ram else Tier.GPU for name in source.names()}
    return replace(found, tiers=tiers)


@pytest.mark.parametrize("family", FOLDERS)
def test_only_what_the_cpu_reads_comes_into_ram(family: str, device: str, tmp_path: Path) -> None:
    make, place = FOLDERS[family]
    path = make(tmp_path)
    source, seen = open_source(path), list[Progress]()
    found = placed(path, PLACES[place])
    weights = load._bring_in(source, "owned", found, seen.append)
    in_ram = [name for name in source.names() if found.tier(name) is Tier.RAM]
    tensors = [part for name in in_ram for part in source[name].parts]
    least = sum(source[name].nbytes for name in in_ram)
    assert least <= seen[-1].total <= least + 2 * PAGE * len(tensors)
    for name in source.names():
        same = weights[name].parts[0].ctypes.data == source[name].parts[0].ctypes.data
        assert same is (found.tier(name) is Tier.GPU)
    load._release(source, found, embedding=False)
    behind = []
    for each in (weights, open_source(path)):
        config = read_config(source)
        parts = GpuParts(config, CONTEXT, device, PLACES[place])
        model = Transformer(config, each, CONTEXT, parts)
        *_, hidden = model.layers(IDS[:3], model.new_cache(CONTEXT))
        behind.append(model.head(hidden).cpu())
    assert torch.equal(*behind)


def test_a_folders_scales_come_with_their_weights(tmp_path: Path) -> None:
    folder = toy.hf_folder(tmp_path / "hf", toy.config())
    source = open_source(toy.fp8_folder(folder, tmp_path / "fp8"))
    for name in ("blk.1.ffn_up_exps.weight", "blk.0.attn_output.weight", "output_norm.weight"):
        spans = [span for parts in source.spans([name]).values() for span in parts]
        assert sum(end - begin for begin, end in spans) == source[name].nbytes
