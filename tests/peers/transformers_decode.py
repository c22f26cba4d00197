"""Decode against transformers' `generate` in float32, same prompt, same threads, in turns.

    python -m tests.peers.transformers_decode [MODEL] [--threads 2] [--rounds 5] [--floor 1.2]

MODEL is a folder that both load, or a GGUF, whose dequantised weights transformers then gets. Each
side answers one question greedily to its end; the figure is its tokens per second, the short prompt
included. Exit code 1 if the ratio of the medians lies below the floor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import localr1
from localr1.chat.transcript import Message
from tests import toy

VERSIONS = {name: version(name) for name in ("transformers", "torch", "numba")}
QUESTION = "What is 347 + 586?"
MOST_TOKENS = 400
_PAUSE = 0.5  # seconds between turns, for the other side's threads to go to sleep

Side = Callable[[], int]  # answers once, returns the number of tokens written


def our_side(llm: localr1.LLM, ids: list[int]) -> Side:
    """localr1, from an empty cache every time."""
    params = localr1.SamplingParams(temperature=0, max_tokens=MOST_TOKENS)

    def answer() -> int:
        for _ in llm.engine.prefill(ids[:1]):
            pass  # leaves one token in the cache, so that the prompt is read again
        return sum(1 for _ in llm.generate(ids, params))

    return answer


def their_side(folder: Path, llm: localr1.LLM, ids: list[int]) -> Side:
    """transformers with its defaults, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = torch.tensor([ids])
    stops = sorted(llm.tokenizer.stop_ids)

    def answer() -> int:
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=MOST_TOKENS,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        written = out[0, len(ids) :].tolist()
        return len(written) - (written[-1] in stops)

    return answer


def speed(side: Side) -> float:
    """Tokens per second of one answer."""
    time.sleep(_PAUSE)
    began = time.perf_counter()
    tokens = side()
    return tokens / (time.perf_counter() - began)


def main() -> int:
    """Measure in turns, the first round of each not counted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="tiny-r1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--floor", type=float, default=1.2)
    options = parser.parse_args()
    llm = localr1.load(options.model, threads=options.threads)
    torch.set_num_threads(options.threads)
    ids = llm.template.encode([Message("user", QUESTION)]).ids
    with tempfile.TemporaryDirectory() as scratch:
        folder = llm.path
        if not folder.is_dir():
            folder = toy.hf_folder_from_gguf(llm.path, Path(scratch) / "hf", dtype=torch.float32)
        sides = {"localr1": our_side(llm, ids), "transformers": their_side(folder, llm, ids)}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds + 1):
        for name, side in sides.items():
            speeds[name].append(speed(side))
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    ratio = medians["localr1"] / medians["transformers"]
    for name, value in medians.items():
        print(f"{name:<13} {value:7.1f} tokens/s")
    print(f"ratio {ratio:.2f}")
    print(
        json.dumps(
            {
                "model": llm.name,
                "threads": options.threads,
                **medians,
                "ratio": ratio,
                "versions": VERSIONS,
            }
        )
    )
    return 0 if ratio >= options.floor else 1


if __name__ == "__main__":
    sys.exit(main())
