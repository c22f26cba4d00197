"""Whole models on the CPU against llama.cpp: the same file, the same threads, in turns.

    python -m tests.peers.llama_cpp_models [CASE ...] [--threads 2] [--rounds 6]

The 7B shape is R1-Distill-Qwen-7B's in Q4_K_M with random weights: 8 of its 28 layers, and as much
of its vocabulary, so that the head's share of a token is the same. llama.cpp's side is a loop over
`llama_decode`, without flash attention, which is slower on a CPU. Where its weights laid out anew
for this CPU end the process (AMX's do in prompts, and in any call of an R1), it reads them as they
lie in the file, and the line says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import localr1
from localr1 import registry
from localr1.engine.llama_library import library
from localr1.models.dense_config import DenseConfig
from tests.models import samples
from tools.make_random_dense import make_random_dense

CASES = {  # model, tokens of the prompt, tokens written, the least ratio that is wanted
    "7b-prefill": ("7b", 512, 0, 2.5),
    "7b-decode": ("7b", 16, 24, 1.05),
    "smollm2-decode": ("smollm2", 16, 128, 1.0),
    "tiny-r1-decode": ("tiny-r1", 16, 256, 1.0),
}
LAYERS = 8
CONTEXT = 1024
_PAUSE = 0.05  # seconds between turns, for the other side's threads to go to sleep

Side = Callable[[list[int], int], float]  # seconds of a prompt, or of writing after it


def shape_of_7b(folder: Path) -> Path:
    """The file of random weights, made where it is missing."""
    path = folder / "random-7b.gguf"
    if not path.exists():
        c = DenseConfig.from_hf(registry.entries()["r1-distill-7b"].config)
        words = c.vocab_size * LAYERS // c.n_layers // 64 * 64
        make_random_dense(path, replace(c, n_layers=LAYERS, vocab_size=words))
    return path


def our_side(path: Path, threads: int) -> tuple[Side, int]:
    """localr1, and its vocabulary's size."""
    engine = localr1.load(str(path), device="cpu", threads=threads, context=CONTEXT).engine

    def seconds(prompt: list[int], written: int) -> float:
        began = time.perf_counter()
        for _ in engine.prefill(prompt):
            pass
        if not written:
            return time.perf_counter() - began
        began, token = time.perf_counter(), prompt[0]
        for _ in range(written):
            token = int(engine.step(token)[0].numpy().argmax())
        return time.perf_counter() - began

    return seconds, engine.runner.vocab_size


def their_side(path: Path, threads: int, repacked: bool) -> Side:
    """llama.cpp's functions in a loop of their own."""
    lib = library()
    options = lib.llama_model_default_params()
    options.use_extra_bufts, options.n_gpu_layers = repacked, 0
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, 512, 512
    options.n_threads = options.n_threads_batch = threads
    options.flash_attn_type = 0
    context = lib.llama_init_from_model(model, options)
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def decode(ids: list[int]) -> int:
        tokens = (lib.llama_token * len(ids))(*ids)  # a batch does not keep them alive
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama.cpp could not decode")
        return int(np.ctypeslib.as_array(lib.llama_get_logits(context), (size,)).argmax())

    def seconds(prompt: list[int], written: int) -> float:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        began = time.perf_counter()
        if not written:
            decode(prompt)
            return time.perf_counter() - began
        for token in prompt:  # where several at once end the process, one by one may not
            decode([token])
        began = time.perf_counter()
        for _ in range(written):
            token = decode([token])
        return time.perf_counter() - began

    return seconds


def measure(path: Path, case: str, threads: int, rounds: int, repacked: bool) -> dict[str, Any]:
    """Tokens per second of both sides, and the ratios of pairs, after one that does not count."""
    _, prompt, written, _ = CASES[case]
    ours, size = our_side(path, threads)
    theirs, rng = their_side(path, threads, repacked), np.random.default_rng(0)
    pairs = []
    for _ in range(rounds + 1):
        ids = rng.integers(min(size, 700), size=prompt).tolist()
        pair = []
        for side in (ours, theirs):
            pair.append((written or prompt) / side(ids, written))
            time.sleep(_PAUSE)
        pairs.append(pair)
    pairs = pairs[1:]
    ratios = sorted(own / other for own, other in pairs)
    own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "case": case,
        "localr1": own,
        "llama.cpp": other,
        "repacked": repacked,
        "ratios": [ratios[0], statistics.median(ratios), ratios[-1]],
    }


def in_child(path: Path, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process that may end: llama.cpp's best layout that does not end it."""
    for repacked in (True, False):
        command = [sys.executable, "-m", "tests.peers.llama_cpp_models", case, "--file", str(path)]
        command += ["--threads", str(options.threads), "--rounds", str(options.rounds)]
        command += ["--repacked"] if repacked else []
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode == 0:
            return dict(json.loads(child.stdout.splitlines()[-1]))
    raise SystemExit(f"{case}: {child.stderr}")


def main() -> int:
    """Exit code 1 where a case falls short of the ratio that is wanted of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])  # []: none is given
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # of a child
    parser.add_argument("--repacked", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        (case,) = options.cases
        sizes = (options.threads, options.rounds, options.repacked)
        print(json.dumps(measure(options.file, case, *sizes)))
        return 0
    short = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in options.cases or CASES:
            model, *_, wanted = CASES[case]
            if model == "7b":
                path = shape_of_7b(Path(scratch))
            else:
                path = samples.smollm2() if model == "smollm2" else registry.resolve(model).path
            row = in_child(path, case, options)
            low, ratio, high = row["ratios"]
            own, other = row["localr1"], row["llama.cpp"]
            layout = "repacked" if row["repacked"] else "as in the file"
            print(f"{case:<15} localr1 {own:8.1f}  llama.cpp {other:8.1f} tokens/s", end="  ")
            print(f"ratio {ratio:.2f} ({low:.2f} to {high:.2f}), weights {layout}", flush=True)
            short += ratio < wanted
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
