"""Which engine "auto" takes, on machines that are pretended; the models are real."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cpu_experts import cpu
from localr1.engine import choice, llama_library
from localr1.engine.choice import HYBRID, LLAMA_CPP, choose
from localr1.errors import LocalR1Error, Unsupported
from localr1.models.source import open_source
from tests import toy


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AVX-512, no GPU, llama.cpp installed."""
    monkeypatch.delenv("LOCALR1_ISA", raising=False)
    monkeypatch.setattr(cpu, "supports", lambda tier: True)
    monkeypatch.setattr(choice.gpus, "look", lambda: ())
    monkeypatch.setattr(llama_library, "missing", lambda: "")
    monkeypatch.setattr(llama_library, "has_gpu_code", lambda: False)


def test_ours_runs_what_it_covers() -> None:
    chosen = choose("auto", open_source(toy.TINY_R1))
    assert (chosen.engine, chosen.why) == (HYBRID, "") and chosen.config is not None


def test_a_cpu_that_our_kernels_are_not_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(toy.TINY_R1)
    monkeypatch.setattr(cpu, "supports", lambda tier: tier == "portable")
    chosen = choose("auto", source)
    assert chosen.engine == LLAMA_CPP and "AVX-512" in chosen.why
    assert choose("hybrid", source).engine == HYBRID
    with monkeypatch.context() as patch:  # ours is slower there, but it runs
        patch.setattr(llama_library, "missing", lambda: "it is not installed")
        assert choose("auto", source).engine == HYBRID
    with monkeypatch.context() as patch:  # somebody wants our portable kernels
        patch.setenv("LOCALR1_ISA", "portable")
        assert choose("auto", source).engine == HYBRID
    monkeypatch.setattr(choice.gpus, "look", lambda: (SimpleNamespace(capability=(8, 6)),))
    assert choose("auto", source).engine == HYBRID
    assert choose("auto", source, use_gpu=False).engine == LLAMA_CPP


def test_a_gpu_that_only_llama_cpp_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(toy.TINY_R1)
    monkeypatch.setattr(llama_library, "has_gpu_code", lambda: True)
    monkeypatch.setattr(llama_library, "free_vram", lambda: 8 << 30)
    chosen = choose("auto", source)
    assert chosen.engine == LLAMA_CPP and "GPU" in chosen.why
    assert choose("auto", source, use_gpu=False).engine == HYBRID
    monkeypatch.setattr(llama_library, "free_vram", lambda: 8 << 20)  # too small for the model
    assert choose("auto", source).engine == HYBRID


def test_where_neither_can_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.gguf"
    content = toy.TINY_R1.read_bytes()
    path.write_bytes(content.replace(b"deepseek2", b"deepseekX", 1))
    source = open_source(path)
    chosen = choose("auto", source)
    assert chosen.engine == LLAMA_CPP and "'deepseekX'" in chosen.why and chosen.config is None
    monkeypatch.setattr(llama_library, "missing", lambda: "it is not installed")
    with pytest.raises(Unsupported, match="'deepseekX'") as caught:
        choose("auto", source)
    assert "pip install 'localr1[llama-cpp]'" in caught.value.hint


def test_an_engine_that_there_is_not() -> None:
    with pytest.raises(LocalR1Error, match="'vllm'") as caught:
        choose("vllm", open_source(toy.TINY_R1))
    assert caught.value.code == 2 and "llama.cpp" in caught.value.hint
