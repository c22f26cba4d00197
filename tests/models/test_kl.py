"""Whole models from quantised files: no further from the exact logits than llama.cpp on the same
file.

The reference is the file's own weights, dequantised, in float64 by transformers. The text is
tiny-r1's own: its problems, and its greedy answers to them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import localr1
from localr1.chat.transcript import Message
from tests import oracles, toy

PROBLEMS = Path(__file__).parents[1] / "data" / "eval.jsonl"
N_TOKENS = 4096
ALLOWED = (1.05, 1e-7)  # times llama.cpp's divergence, plus


@pytest.fixture(scope="module")
def text() -> list[list[int]]:
    """At least 4,096 tokens of tiny-r1 solving its problems, in sequences of up to 600."""
    llm = localr1.load("tiny-r1")
    greedy = localr1.SamplingParams(temperature=0, max_tokens=500)
    problems = [json.loads(line) for line in PROBLEMS.read_text("utf-8").splitlines()]
    sequences: list[list[int]] = []
    for problem in problems[::5]:
        prompt = llm.template.encode([Message("user", problem["prompt"])]).ids
        sequences.append([*prompt, *llm.generate(prompt, greedy)])
        if sum(map(len, sequences)) >= N_TOKENS:
            return sequences
    raise AssertionError("the problems are too few for the text")


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Path:
    """tiny-r1's weights as a folder of F32."""
    return toy.hf_folder_from_gguf(
        toy.TINY_R1, tmp_path_factory.mktemp("f") / "f32", dtype=torch.float32
    )


@pytest.mark.parametrize("layout", ["k_b+v_b", "kv_b"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_divergence_is_at_most_llama_cpps(kind, layout, text, floats, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    plain = toy.gguf(floats, tmp_path / "f32.gguf", kind="F32", layout=layout, mtp=False)
    path = oracles.quantize(plain, tmp_path / f"{kind}.gguf", kind)
    exact = toy.hf_folder_from_gguf(path, tmp_path / "exact", dtype=torch.float32)
    reference = oracles.transformers_logits(exact, text)
    llm = localr1.load(path)
    own = oracles.mean_kl(reference, [llm.logits(ids) for ids in text])
    theirs = oracles.mean_kl(reference, oracles.llama_cpp_logits(path, text))
    print(f"{kind} {layout}: mean KL {own:.3g}, llama.cpp {theirs:.3g} ({own / theirs:.2f} x)")
    assert np.isfinite(own)
    assert own <= ALLOWED[0] * theirs + ALLOWED[1]
