"""Whole models whose first layers the CPU runs beside the GPU, for want of VRAM.

Only on a GPU, as test_engine.py; tests/gpu/test_model.py has their parts without one.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import localr1
from localr1.chat.transcript import Message
from localr1.engine.gpu_runner import GpuRunner
from localr1.machine import hardware
from localr1.models import inventory
from localr1.models.cache_layout import CACHES
from localr1.models.source import open_source, read_config
from offload.placement import Tier
from offload.planner import plan, with_room
from tests import toy, toy_dense
from tests.conftest import HAS_GPU
from tools.evaluate import PROBLEMS

pytestmark = pytest.mark.gpu if HAS_GPU else pytest.mark.skip(reason="needs a GPU")

GREEDY = localr1.SamplingParams(temperature=0.0, max_tokens=200)
PROMPTS = [json.loads(line)["prompt"] for line in Path(PROBLEMS).read_text("utf-8").splitlines()]
CONTEXT = 512


def vram_for(path: Path, cpu_layers: int, cache: str) -> int:
    """The least VRAM with which no more than so many layers are left to the CPU."""
    source = open_source(path)
    stock = inventory.from_source(source, read_config(source)).with_cache(cache)
    low, high, found = 0, 1 << 36, hardware()
    while high - low > 1:
        middle = (low + high) // 2
        machine = with_room(found, None, middle)
        placed = plan(stock.weights, machine, CONTEXT, stock.demands, prefer_gpu=True)
        enough = placed.gpu and placed.cpu_layers <= cpu_layers
        low, high = (low, middle) if enough else (middle, high)
    return high


@contextmanager
def loaded(path: Path, cpu_layers: int, cache: str = "16bit") -> Iterator[localr1.LLM]:
    """The model with so many layers on the CPU and all FFNs in RAM; the mailbox is its own."""
    gc.collect()  # a model before it may hold one
    vram = vram_for(path, cpu_layers, cache)
    llm = localr1.load(str(path), device="cuda", vram=vram, context=CONTEXT, cache=cache)
    graph = runner(llm)._graph
    assert graph is not None
    try:
        yield llm
    finally:
        graph.close()


def runner(llm: localr1.LLM) -> GpuRunner:
    assert isinstance(llm.engine.runner, GpuRunner)
    return llm.engine.runner


def rendered(llm: localr1.LLM, prompt: str) -> list[int]:
    message = Message("user", prompt)
    return llm.template.encode([message], add_generation_prompt=True).ids


@pytest.fixture(scope="module")
def on_cpu() -> localr1.LLM:
    return localr1.load("tiny-r1", device="cpu", context=CONTEXT)


@pytest.mark.parametrize("cpu_layers", [1, 3])
def test_tiny_r1_lies_and_writes_as_planned(cpu_layers: int, on_cpu: localr1.LLM) -> None:
    """One dense layer on the CPU, or all but one."""
    with loaded(toy.TINY_R1, cpu_layers) as llm:
        found = llm.engine.placement
        assert found is not None and found.cpu_layers == cpu_layers
        (note,) = llm.engine.notes
        assert note.startswith("the CPU runs layer") and "no room" in note
        cache = llm.engine.cache
        row = f"{cpu_layers} x 160 float32, {4 - cpu_layers} x 160 bfloat16"
        assert cache.layout == row
        items = [item.nbytes for item in (*found.gpu, *found.ram) if item.name == "MLA cache"]
        assert sum(items) == runner(llm).cache.nbytes
        asked = [rendered(on_cpu, prompt) for prompt in PROMPTS[:50]]
        texts = [[list(m.generate(ids, GREEDY)) for ids in asked] for m in (llm, on_cpu)]
        same = [one == other for one, other in zip(*texts, strict=True)]
        assert sum(same) >= 0.96 * len(same)


def test_an_interrupt_leaves_the_next_answer_right() -> None:
    """By closing the stream, and by Ctrl-C at any moment."""
    with loaded(toy.TINY_R1, 2) as llm:
        ids = rendered(llm, PROMPTS[3])
        whole = list(llm.generate(ids, GREEDY))
        for n in range(1, 12):
            list(islice(llm.generate(ids, GREEDY), n))
            assert list(llm.generate(ids, GREEDY)) == whole
        for i in range(20):
            timer = threading.Timer(0.01 + 0.003 * i, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                for _ in range(1000):
                    list(llm.generate(ids, GREEDY))
            assert list(llm.generate(ids, GREEDY)) == whole


def test_a_saved_conversation_goes_on() -> None:
    with loaded(toy.TINY_R1, 2) as llm:
        ids, engine, file = rendered(llm, PROMPTS[3]), llm.engine, io.BytesIO()
        list(engine.prefill(ids))
        expected = engine.step(17).cpu().numpy().copy()
        engine.cache.save(file, 0, len(ids))
    file.seek(0)
    with loaded(toy.TINY_R1, 2) as llm:
        cache = llm.engine.cache
        cache.load(file, len(ids))
        cache.commit(len(ids))
        np.testing.assert_array_equal(llm.engine.step(17).cpu().numpy(), expected)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_dense_models_give_the_cpus_logits(family: str, cache: str, tmp_path: Path) -> None:
    """A prompt, then tokens as graphs: the program of two layers, then FFNs by the mailbox."""
    folder = toy_dense.hf_folder(tmp_path / "hf", toy_dense.config(family))
    path = toy_dense.gguf_file(folder, tmp_path / "toy.gguf", "Q8_0")
    ids = [(7 * i * i + 3 * i) % 700 for i in range(40)]
    on_cpu = behind(localr1.load(str(path), device="cpu", context=CONTEXT), ids)
    with loaded(path, 2, cache) as llm:
        found = llm.engine.placement
        assert found is not None and found.cpu_layers == 2
        assert found.tier("blk.2.ffn_up.weight") is Tier.RAM
        split = behind(llm, ids)
    errors = np.linalg.norm(split - on_cpu, axis=1) / np.linalg.norm(on_cpu, axis=1)
    assert errors.max() < 3e-2  # int8 there, bf16 or int8 keys and values here


def behind(llm: localr1.LLM, ids: list[int]) -> np.ndarray:
    """Logits `[tokens, vocab]` behind a prompt of 30 ids and then each of the others."""
    *_, logits = llm.engine.prefill(ids[:30])
    assert isinstance(logits, torch.Tensor)
    found = [logits.cpu().numpy().copy()]
    found += [llm.engine.step(token).cpu().numpy().copy() for token in ids[30:]]
    return np.concatenate(found)
