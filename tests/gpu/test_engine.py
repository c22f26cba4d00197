"""tiny-r1 through the whole engine on a GPU: against the CPU, against itself, and stopped at will.

Only on a GPU: Triton's interpreter would take hours. tests/models/test_kl.py has its distance from
the exact logits.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import localr1
from localr1.chat.transcript import Message
from localr1.engine.gpu_runner import GpuRunner
from localr1.errors import LocalR1Error
from localr1.gpu.driver import GpuError
from localr1.machine import hardware
from localr1.models import inventory
from localr1.models.source import open_source, read_config
from offload.placement import Tier
from offload.planner import plan, with_room
from tests import toy
from tests.conftest import HAS_GPU
from tools.evaluate import PROBLEMS, bold, solve

pytestmark = pytest.mark.gpu if HAS_GPU else pytest.mark.skip(reason="needs a GPU")

GREEDY = localr1.SamplingParams(temperature=0.0, max_tokens=200)
PROMPTS = [json.loads(line)["prompt"] for line in Path(PROBLEMS).read_text("utf-8").splitlines()]


def least_vram() -> int:
    """What holds all but the routed experts, as a 24 GB card does for R1."""
    source = open_source(toy.TINY_R1)
    stock = inventory.from_source(source, read_config(source))
    low, high, found = 0, 1 << 36, hardware()
    while high - low > 1 << 18:
        middle = (low + high) // 2
        machine = with_room(found, None, middle)
        placed = plan(stock.weights, machine, 2048, stock.demands, prefer_gpu=True)
        enough = placed.gpu and not placed.cpu_layers
        low, high = (low, middle) if enough else (middle, high)
    return high


@pytest.fixture(scope="module")
def on_gpu() -> localr1.LLM:
    """Attention on the GPU, experts in RAM."""
    llm = localr1.load("tiny-r1", device="cuda", vram=least_vram())
    assert llm.engine.placement is not None
    assert llm.engine.placement.tier("blk.3.ffn_up_exps.weight") is Tier.RAM
    return llm


@pytest.fixture(scope="module")
def on_cpu() -> localr1.LLM:
    return localr1.load("tiny-r1", device="cpu")


def rendered(llm: localr1.LLM, prompt: str) -> list[int]:
    message = Message("user", prompt)
    return llm.template.encode([message], add_generation_prompt=True).ids


def runner(llm: localr1.LLM) -> GpuRunner:
    assert isinstance(llm.engine.runner, GpuRunner)
    return llm.engine.runner


def test_greedy_texts_are_the_cpus(on_gpu: localr1.LLM, on_cpu: localr1.LLM) -> None:
    asked = [rendered(on_cpu, prompt) for prompt in PROMPTS[:100]]
    texts = [[list(llm.generate(ids, GREEDY)) for ids in asked] for llm in (on_gpu, on_cpu)]
    same = [one == other for one, other in zip(*texts, strict=True)]
    assert sum(same) >= 0.98 * len(same)


@pytest.mark.parametrize("experts", [Tier.RAM, Tier.GPU])
def test_problems_are_solved(on_gpu: localr1.LLM, experts: Tier) -> None:
    llm = on_gpu if experts is Tier.RAM else localr1.load("tiny-r1", device="cuda")
    assert llm.engine.placement is not None
    assert llm.engine.placement.tier("blk.3.ffn_up_exps.weight") is experts
    problems = [json.loads(line) for line in Path(PROBLEMS).read_text("utf-8").splitlines()]
    solved = [bold(text) == problem["answer"] for problem, text, _ in solve(llm, problems)]
    assert sum(solved) >= 0.95 * len(solved)


def test_problems_are_solved_with_an_8bit_cache(on_gpu: localr1.LLM) -> None:
    llm = localr1.load("tiny-r1", device="cuda", cache="8bit")
    assert not llm.engine.notes
    assert llm.engine.cache.layout == "4 x 160 uint8 + 2 scales"
    assert runner(llm).cache.nbytes == planned_cache(llm) < 0.6 * planned_cache(on_gpu)
    problems = [json.loads(line) for line in Path(PROBLEMS).read_text("utf-8").splitlines()]
    solved = [bold(text) == problem["answer"] for problem, text, _ in solve(llm, problems)]
    assert sum(solved) >= 0.95 * len(solved)


def planned_cache(llm: localr1.LLM) -> int:
    """Bytes of VRAM."""
    assert llm.engine.placement is not None
    return next(item.nbytes for item in llm.engine.placement.gpu if item.name == "MLA cache")


def test_the_graph_is_its_eager_twin(on_gpu: localr1.LLM) -> None:
    """Bit by bit: the same kernels, whichever way the experts are asked, and whatever memory
    prompts of other lengths gave back since the graph was captured.
    """
    ids = rendered(on_gpu, PROMPTS[0])
    engine, graph = on_gpu.engine, runner(on_gpu)._graph
    assert graph is not None
    for n in range(1, len(ids)):
        engine._truncate(0)
        list(engine.prefill(ids[:n]))
    taken = [torch.full((4,), -1, device="cuda") for _ in range(1000)]
    engine._truncate(0)
    for twin in (None, graph):
        runner(on_gpu)._graph = twin
        list(engine.prefill(ids[:-1]))
        found = [engine.step(token).cpu().numpy().copy() for token in (ids[-1], 17, 18)]
        engine._truncate(0)
        if twin is None:
            eager = found
    np.testing.assert_array_equal(np.stack(eager), np.stack(found))
    del taken


def test_a_stopped_answer_leaves_the_next_one_right(on_gpu: localr1.LLM) -> None:
    ids = rendered(on_gpu, PROMPTS[3])
    whole = list(on_gpu.generate(ids, GREEDY))
    for n in range(1, 12):
        list(islice(on_gpu.generate(ids, GREEDY), n))
        assert list(on_gpu.generate(ids, GREEDY)) == whole


def test_a_thousand_starts_and_stops_leave_memory_as_it_was(on_gpu: localr1.LLM) -> None:
    ids = rendered(on_gpu, PROMPTS[5])
    process = psutil.Process()

    def some(n: int) -> tuple[int, int]:
        for i in range(n):
            list(islice(on_gpu.generate(ids, GREEDY), i % 4 + 1))
        return torch.cuda.mem_get_info()[0], process.memory_info().rss

    vram, ram = some(100)
    vram_later, ram_later = some(900)
    assert vram_later == vram
    assert ram_later < ram + (16 << 20)


def test_a_stopped_program_goes_on(on_gpu: localr1.LLM) -> None:
    """SIGSTOP for longer than a wait on the GPU may last: the token is run again."""
    ids = rendered(on_gpu, PROMPTS[3])
    whole = list(on_gpu.generate(ids, GREEDY))
    stop = f"sleep 0.05; kill -STOP {os.getpid()}; sleep 1.5; kill -CONT {os.getpid()}"
    with subprocess.Popen(["sh", "-c", stop]):
        for _ in range(20):
            assert list(on_gpu.generate(ids, GREEDY)) == whole


def test_a_launch_that_fails_is_told_and_the_next_answer_is_right(
    on_gpu: localr1.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = rendered(on_gpu, PROMPTS[3])
    whole = list(on_gpu.generate(ids, GREEDY))
    on_gpu.engine._truncate(0)

    def broken(*_: object, **__: object) -> None:
        raise GpuError("the launch was refused")

    with monkeypatch.context() as patch, pytest.raises(LocalR1Error, match="refused") as caught:
        patch.setattr("localr1.gpu.norm.launch", broken)
        list(on_gpu.generate(ids, GREEDY))
    assert "--device cpu" in caught.value.hint
    assert list(on_gpu.generate(ids, GREEDY)) == whole


def test_a_model_that_is_let_go_leaves_its_place_to_another(on_gpu: localr1.LLM) -> None:
    """As /model does: one mailbox, one GPU's memory. The tests' own model gives its place first."""
    shared = runner(on_gpu)._graph
    assert shared is not None
    shared.close()
    for _ in range(3):
        llm = localr1.load("tiny-r1", device="cuda", vram=least_vram())
        assert not llm.engine.notes and runner(llm)._graph is not None
        free = torch.cuda.mem_get_info()[0]
        assert list(llm.generate(rendered(llm, PROMPTS[0]), GREEDY))
        del llm
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] > free


def test_threads_that_died_end_the_answer_soon() -> None:
    """One sentence within seconds, whatever the GPU waits for."""
    llm = localr1.load("tiny-r1", device="cuda", vram=least_vram())
    ids = rendered(llm, PROMPTS[0])
    list(islice(llm.generate(ids, GREEDY), 2))
    graph = runner(llm)._graph
    assert graph is not None
    graph.close()
    began = time.monotonic()
    with pytest.raises(LocalR1Error, match="token failed"):
        list(llm.generate(ids, GREEDY))
    assert time.monotonic() - began < 4
