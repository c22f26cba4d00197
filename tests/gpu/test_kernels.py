"""What a first start compiles is what a model then launches: a second start compiles nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from localr1.engine import halves
from localr1.engine.gpu_load import formats_of
from localr1.gpu import launch
from localr1.gpu.cubins import Configuration
from localr1.gpu.kernels import kernels
from localr1.models.architecture import Config, config_from_hf
from localr1.models.cache_layout import CACHES, IN_8_BITS, IN_16_BITS
from localr1.models.gpu import GpuParts
from localr1.models.linear import Weights
from localr1.models.shapes import weight_shapes
from localr1.models.source import open_source, read_config
from localr1.models.synthetic import SyntheticWeights
from localr1.models.transformer import Transformer
from tests import toy, toy_dense
from tests.gpu.test_model import PLACES
from tests.test_bench_synthetic import DENSE, TINY

MODELS: dict[str, Callable[[Path], Path]] = {
    "deepseek": lambda at: toy.gguf(toy.hf_folder(at, toy.config()), at / "toy.gguf"),
    "deepseek, old layout": lambda at: toy.gguf(
        toy.hf_folder(at, toy.config()), at / "toy.gguf", "Q8_0", layout="kv_b"
    ),
    **{
        name: lambda at, name=name: toy_dense.gguf_file(
            toy_dense.hf_folder(at, toy_dense.config(name)), at / "toy.gguf", "Q8_0"
        )
        for name in ("llama", "qwen2", "qwen3")
    },
}

REAL_TILES = True  # see conftest.py


def told(configuration: Configuration) -> tuple[str, ...]:
    """What decides on the machine code, but for the options that the interpreter has not."""
    interpreters = ("FLOAT_DOT", "EMULATED")
    constants = {k: str(v) for k, v in configuration.constants.items() if k not in interpreters}
    parts = configuration.signature, constants
    return configuration.fn.__name__, *(str(sorted(part.items())) for part in parts)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, ...]]:
    """What is launched from now on, without being run; ids of experts that nobody chooses are 0."""
    found: set[tuple[str, ...]] = set()

    def note(fn: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: Any) -> None:
        kinds, _ = launch._described(args)
        for tensor in args:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int32:
                tensor.zero_()
        found.add(told(launch._configuration(fn, kinds, constants, 4, 2)))

    monkeypatch.setattr(launch, "_interpret", note)
    return found


def run(config: Config, weights: Weights, on_gpu: Callable[[str], bool], cache: str) -> int:
    """A token, few and many, of which most stream experts; the architecture."""
    parts = GpuParts(config, 64, "cpu", on_gpu, cache=cache)
    model = Transformer(config, weights, 64, parts)
    if parts.stage.routed:
        assert list(parts.stage.open_streaming(20, owned=False)) == []
    for n_tokens in (1, 9, 20):
        *_, hidden = halves.read(model, parts, [0] * n_tokens, model.new_cache(64))
        model.head(hidden, last=1)
    return parts.arch


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_launched_that_was_not_compiled(
    name: str, cache: str, tmp_path: Path, launched: set[tuple[str, ...]]
) -> None:
    source = open_source(MODELS[name](tmp_path))
    config = read_config(source)
    for on_gpu in PLACES.values():
        arch = run(config, source, on_gpu, cache)
    formats = formats_of(config, source, source.names(), streams=True)
    compiled = {
        told(made) for made in kernels(arch, config, *formats, eight_bit=cache == IN_8_BITS)
    }
    assert launched and not sorted(launched - compiled)


@pytest.mark.parametrize("shapes", [TINY, DENSE])
@pytest.mark.parametrize("suffix", ["_exps.weight", "nothing"])
def test_nor_of_random_weights(
    shapes: dict[str, Any], suffix: str, launched: set[tuple[str, ...]]
) -> None:
    """Routed experts in RAM, or all on the GPU."""
    config = config_from_hf(shapes)
    in_ram = frozenset(name for name in weight_shapes(config) if name.endswith(suffix))
    weights = SyntheticWeights(config, "Q4_K_M", in_ram, 64 << 20)
    arch = run(config, weights, lambda name: name not in in_ram, IN_16_BITS)
    formats = formats_of(config, weights, weights.other_names, streams=True)
    compiled = {told(made) for made in kernels(arch, config, *formats)}
    assert launched and not sorted(launched - compiled)
