"""Experts in RAM that come to the GPU for a prompt, against the same on the GPU for good."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from localr1.engine import halves
from localr1.models import gpu_streaming
from localr1.models.architecture import config_from_hf
from localr1.models.gpu import GpuParts
from localr1.models.gpu_streaming import Streaming
from localr1.models.linear import Weights
from localr1.models.source import Source, open_source, read_config
from localr1.models.synthetic import SyntheticWeights
from localr1.models.transformer import Hidden, Transformer
from tests import toy
from tests.conftest import HAS_GPU
from tests.gpu.test_model import CONTEXT, DEVICE, PLACES
from tests.test_bench_synthetic import TINY

pytestmark = [pytest.mark.gpu] if HAS_GPU else []

FEWEST = 20  # tokens
PROMPT = [(5 * i * i + i) % 256 for i in range(21)]


@pytest.fixture(scope="module", name="source")
def toy_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A toy with one dense layer and one of experts."""
    folder = toy.hf_folder(tmp_path_factory.mktemp("hf"), toy.config(num_hidden_layers=2))
    return open_source(toy.gguf(folder, folder / "toy.gguf"))


class Prompts:
    """A model on `parts` that reads prompts."""

    def __init__(self, weights: Weights, parts: GpuParts) -> None:
        self.parts = parts
        self.model = Transformer(parts.config, weights, CONTEXT, parts)

    def layers(self) -> Iterator[Hidden]:
        return halves.read(self.model, self.parts, PROMPT, self.model.new_cache(CONTEXT))

    def logits(self) -> torch.Tensor:
        *_, hidden = self.layers()
        return self.model.head(hidden, last=1).cpu()


@pytest.fixture(name="streams")
def streaming(source: Source, monkeypatch: pytest.MonkeyPatch) -> Prompts:
    """Three pieces of a layer's eight experts."""
    config, matrices = read_config(source), ("gate", "up", "down")
    experts = sum(source[f"blk.1.ffn_{matrix}_exps.weight"].nbytes for matrix in matrices)
    monkeypatch.setattr(gpu_streaming, "STREAMED", experts * 3 // config.n_routed_experts)
    found = Prompts(source, GpuParts(config, CONTEXT, DEVICE, PLACES["experts in RAM"]))
    assert list(found.parts.stage.open_streaming(FEWEST, owned=False)) == []
    assert not found.parts.stage.streams(FEWEST - 1)
    assert found.parts.stage.streamer is not None and len(found.parts.stage.streamer.pieces) == 3
    return found


def test_answers_are_those_of_experts_on_the_gpu(source: Source, streams: Prompts) -> None:
    """But for the order of sums; twice, since the pieces' memory is used again."""
    parts = GpuParts(read_config(source), CONTEXT, DEVICE, PLACES["all on the GPU"])
    found = streams.logits()
    torch.testing.assert_close(found, Prompts(source, parts).logits(), rtol=1e-5, atol=1e-5)
    assert torch.equal(streams.logits(), found)


def test_a_prompt_may_end_early(streams: Prompts) -> None:
    """Ctrl-C between two layers: the thread ends, and the next prompt begins anew."""
    before = threading.active_count()
    layers = streams.layers()
    next(layers)
    assert threading.active_count() == before + 1
    layers.close()
    assert threading.active_count() == before
    assert streams.logits().isfinite().all()


def test_what_the_thread_fails_at_is_told(
    streams: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: of the copy")

    monkeypatch.setattr(Streaming, "_send", fail)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="of the copy"):
        streams.logits()
    assert threading.active_count() == before


def test_memory_of_our_own_is_told_to_the_driver() -> None:
    """Where there is one, and no more once the model has gone; answers are the same."""
    config = config_from_hf({**TINY, "num_hidden_layers": 2, "vocab_size": 256})
    in_ram = frozenset(f"blk.1.ffn_{matrix}_exps.weight" for matrix in ("gate", "up", "down"))
    weights = SyntheticWeights(config, "Q4_K_M", in_ram, 64 << 20)
    found = []
    for owned in (False, True):
        parts = GpuParts(config, CONTEXT, DEVICE, PLACES["experts in RAM"])
        model = Prompts(weights, parts)
        told = list(parts.stage.open_streaming(FEWEST, owned))
        known = owned and HAS_GPU
        assert bool(told) == known and all(done == total for done, total in told[-1:])
        assert torch.from_numpy(weights.measured).is_pinned() == known
        found.append(model.logits())
        del model, parts
        assert not torch.from_numpy(weights.measured).is_pinned()
    assert torch.equal(*found)


def test_what_is_told_are_whole_pages_once() -> None:
    """Of arrays that touch, share a page, lie apart or are the same."""
    page = mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, 16 * page), np.uint8)
    start = memory.ctypes.data
    cuts = (
        (100, 2 * page),
        (2 * page, 3 * page + 7),
        (3 * page + 7, 3 * page + 9),
        (9 * page, 10 * page),
    )
    arrays = [memory[begin:end] for begin, end in (*cuts, cuts[0])]
    spans = gpu_streaming._whole_pages(arrays)
    assert [(begin - start, end - start) for begin, end in spans] == [
        (0, 4 * page), (9 * page, 10 * page)
    ]  # fmt: skip
