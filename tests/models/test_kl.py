"""Whole models from quantised files: no further from the exact logits than llama.cpp on the same
file.

The reference is the file's own weights, dequantised, in float64 by transformers. The text is
conversations of tiny-r1's kind: its held-out problems with their answers.
"""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import localr1
from localr1.chat.transcript import Message
from localr1.models.source import open_source, read_text
from tests import oracles, toy

PROBLEMS = Path(__file__).parents[1] / "data" / "eval.jsonl"
LAYOUTS = ("k_b+v_b", "kv_b")
ALLOWED = (1.05, 1e-7)  # times llama.cpp's divergence, plus


@pytest.fixture(scope="module")
def text() -> list[list[int]]:
    """At least 4,096 tokens: conversations of 16 problems and answers, some 450 tokens each."""
    _, template = read_text(open_source(toy.TINY_R1))
    problems = [json.loads(line) for line in PROBLEMS.read_text("utf-8").splitlines()]
    random.Random(0).shuffle(problems)
    sequences = []
    for i in range(0, len(problems), 16):
        turns = [
            message
            for problem in problems[i : i + 16]
            for message in (
                Message("user", problem["prompt"]),
                Message("assistant", problem["reference"]),
            )
        ]
        sequences.append(template.encode(turns, add_generation_prompt=False).ids)
    assert sum(map(len, sequences)) >= 4096
    return sequences


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Path:
    """tiny-r1's weights as a folder of F32."""
    return toy.hf_folder_from_gguf(
        toy.TINY_R1, tmp_path_factory.mktemp("f") / "f32", dtype=torch.float32
    )


CASES = [
    *((kind, layout) for kind in ("Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K") for layout in LAYOUTS),
    *((kind, LAYOUTS[0]) for kind in ("Q2_K", "Q3_K_M", "Q4_0", "IQ4_XS")),
]


ON_GPU = [
    pytest.param(*case, "cuda", marks=pytest.mark.gpu)
    for case in itertools.product(("Q8_0", "Q4_K_M", "Q6_K"), LAYOUTS)
    if torch.cuda.is_available()
]


@pytest.mark.parametrize(("kind", "layout", "device"), [*((*c, "cpu") for c in CASES), *ON_GPU])
def test_divergence_is_at_most_llama_cpps(kind, layout, device, text, floats, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    plain = toy.gguf(floats, tmp_path / "f32.gguf", kind="F32", layout=layout, mtp=False)
    path = oracles.quantize(plain, tmp_path / f"{kind}.gguf", kind)
    exact = toy.hf_folder_from_gguf(path, tmp_path / "exact", dtype=torch.float32)
    reference = oracles.transformers_logits(exact, text)
    llm = localr1.load(path, device=device)
    own = oracles.mean_kl(reference, [llm.logits(ids) for ids in text])
    theirs = oracles.mean_kl(reference, oracles.llama_cpp_logits(path, text))
    ratio = f"{own / theirs:.2f} x"
    print(f"\n{kind} {layout} {device}: mean KL {own:.3g}, llama.cpp {theirs:.3g} ({ratio})")
    assert np.isfinite(own)
    assert own <= ALLOWED[0] * theirs + ALLOWED[1]
