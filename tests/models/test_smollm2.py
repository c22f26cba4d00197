"""A real small Llama, SmolLM2-135M-Instruct in Q4_1, against llama.cpp and exact logits.

Where weights are quantised, both runners round activations, differently, and the text of so small a
model soon parts: llama.cpp's own does when it reads the prompt in other batches. So the texts are
compared with the same weights as F32, where nothing is rounded, and the quantised file by its
divergence from exact logits, as in test_kl.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from localr1.engine.engine import Engine
from localr1.engine.load import load_engine
from localr1.engine.sampler import SamplingParams
from localr1.models.source import open_source, read_config
from tests import oracles, toy_dense
from tests.models import samples

EOS = 2
QUESTIONS = (
    "What is gravity?", "Write a short poem about the sea.", "List three fruits.",
    "Why is the sky blue?", "Explain how a bicycle works.", "What is 12 times 7?",
    "Who was Ada Lovelace?", "Write a Python function that reverses a string.",
    "Translate 'good morning' into French.", "Tell me a story about a fox.",
    "What is the capital of Japan?", "How do I boil an egg?", "Name the planets.",
    "Give me advice for a job interview.", "What is a prime number?", "Describe a sunset.",
    "Summarise the water cycle.", "What causes earthquakes?", "Write a haiku about autumn.",
    "What is photosynthesis?",
)  # fmt: skip
ALLOWED = (1.05, 1e-7)  # times llama.cpp's divergence, plus


@pytest.fixture(scope="module", name="smollm2")
def smollm2_file() -> Path:
    """The file inside the package, whose code is not needed and not imported."""
    return samples.smollm2()


def engine_of(path: Path) -> Engine:
    source = open_source(path)
    return load_engine(source, read_config(source), frozenset({EOS}), context=512)


def llama_of(path: Path):
    """llama.cpp with a float32 cache and without its repacked weights (see oracles)."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", lambda: params):
        return llama_cpp.Llama(
            str(path), n_ctx=512, n_gpu_layers=0, n_threads=2, type_k=0, type_v=0, verbose=False
        )


def prompt(llama, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return llama.tokenize(text.encode(), add_bos=False, special=True)


def greedy(llama, ids: list[int], most: int) -> list[int]:
    """What llama.cpp writes, by the largest of its logits."""
    llama.reset()
    out: list[int] = []
    while len(out) < most:
        llama.eval(out[-1:] or ids)
        logits = np.ctypeslib.as_array(llama._ctx.get_logits_ith(-1), (llama.n_vocab(),))
        if logits.argmax() == EOS:
            break
        out.append(int(logits.argmax()))
    return out


def written(engine: Engine, ids: list[int], params: SamplingParams) -> list[int]:
    return [item for item in engine.stream(ids, params) if isinstance(item, int)]


@pytest.mark.parametrize(
    ("questions", "most"),
    [(QUESTIONS[8:11], 24), pytest.param(QUESTIONS, 128, marks=pytest.mark.slow)],
    ids=["three", "all"],
)
def test_the_text_is_llama_cpps(
    questions: tuple[str, ...], most: int, smollm2: Path, tmp_path: Path
) -> None:
    """Greedy, from F32 weights. At most a tenth may part, where two tokens are equally likely."""
    path = toy_dense.as_f32(smollm2, tmp_path / "f32.gguf")
    engine, llama = engine_of(path), llama_of(path)
    params = SamplingParams(temperature=0, max_tokens=most)
    same = 0
    for question in questions:
        ids = prompt(llama, question)
        own, theirs = written(engine, ids, params), greedy(llama, ids, most)
        same += own == theirs
        if own != theirs:
            at = next(
                i for i, pair in enumerate(zip(own, theirs, strict=False)) if len({*pair}) > 1
            )
            top = np.sort(engine.logits(ids + theirs[:at])[-1])[-2:]
            print(f"\n{question} parts at {at}, where two logits are {top[1] - top[0]:.2g} apart")
    assert same >= 0.9 * len(questions)


@pytest.mark.parametrize(
    "n_texts", [1, pytest.param(20, marks=pytest.mark.slow)], ids=["one text", "all"]
)
def test_divergence_is_at_most_llama_cpps(n_texts: int, smollm2: Path, tmp_path: Path) -> None:
    """Over what the model itself writes, at a temperature that makes it vary."""
    llama, engine = llama_of(smollm2), engine_of(smollm2)
    params = SamplingParams(temperature=1, seed=1, max_tokens=220)
    asked = [prompt(llama, question) for question in QUESTIONS[:n_texts]]
    texts = [ids + written(engine, ids, params) for ids in asked]
    llama.close()
    exact = toy_dense.hf_folder_from_gguf(smollm2, tmp_path / "exact")
    reference = oracles.transformers_logits(exact, texts)
    own = oracles.mean_kl(reference, [engine.logits(ids) for ids in texts])
    theirs = oracles.mean_kl(reference, oracles.llama_cpp_logits(smollm2, texts))
    n_tokens = sum(map(len, texts))
    print(f"\n{n_tokens} tokens: mean KL {own:.3g}, llama.cpp {theirs:.3g} ({own / theirs:.2f} x)")
    assert own <= ALLOWED[0] * theirs + ALLOWED[1]
