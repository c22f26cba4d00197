"""What a GPU refuses while a model runs is told in a sentence, whichever way it is noticed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from localr1.engine import gpu_runner
from localr1.engine.gpu_runner import GpuRunner
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import NO_MEMORY, DoesNotFit, LocalR1Error
from localr1.gpu.driver import GpuError
from localr1.gpu.failures import told
from localr1.models.gpu import GpuParts
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from tests import toy

ADVICE = "For debugging consider passing CUDA_LAUNCH_BLOCKING=1"


def broken(*_: object, **__: object) -> None:
    raise GpuError("the launch was refused")


def no_mailbox(*_: object) -> None:
    raise LocalR1Error("the mailbox does not work")


@pytest.fixture
def runner(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuRunner:
    """Of a toy, kernel after kernel; nothing is launched until it is asked something."""
    folder = toy.hf_folder(tmp_path / "hf", toy.config())
    source = open_source(toy.gguf(folder, tmp_path / "toy.gguf"))
    config = read_config(source)
    parts = GpuParts(config, 64, device)
    monkeypatch.setattr(gpu_runner, "DecodeGraph", no_mailbox)
    made = GpuRunner(Transformer(config, source, 64, parts), parts, 64)
    assert made.problem == "the mailbox does not work; tokens take longer"
    return made


def test_every_call_tells_of_a_launch_that_failed(
    runner: GpuRunner, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.zeros(1, runner.vocab_size, device=device)
    monkeypatch.setattr("localr1.gpu.norm.launch", broken)
    monkeypatch.setattr("localr1.gpu.sampling.launch", broken)
    monkeypatch.setattr(runner.cache, "_parts", broken)
    calls: dict[str, Any] = {
        "read": lambda: list(runner.read([1, 2])),
        "step": lambda: runner.step(1),
        "logits": lambda: runner.logits([1, 2]),
        "draw": lambda: runner.draw(Sampler(SamplingParams()), logits),
        "save": lambda: runner.cache.save(BytesIO(), 0, 1),
        "load": lambda: runner.cache.load(BytesIO(bytes(runner.cache.token_nbytes)), 1),
    }
    for call in calls.values():
        with pytest.raises(LocalR1Error, match="the GPU failed: the launch was refused") as caught:
            call()
        assert "--device cpu" in caught.value.hint


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_torchs_errors_are_told_without_its_advice(kind: type[RuntimeError]) -> None:
    problem = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(LocalR1Error) as caught, told():
        raise kind(f"{problem}\n{ADVICE}")
    assert str(caught.value) == f"the GPU failed: {problem}"


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (3 << 29, 24 << 30))
    with pytest.raises(DoesNotFit, match=r"1\.5 GiB is free") as caught, told():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert caught.value.code == NO_MEMORY and "--context" in caught.value.hint


def test_bugs_stay_bugs() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), told():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
