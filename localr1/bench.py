"""`localr1 bench`: how fast a model runs on this machine, and what its memory would allow.

A readable card, then one line of JSON, the last line of stdout. Every row is measured through the
calls that a chat makes. A share compares decode with the limit of the same run: the bytes that a
token reads, over the read bandwidth of RAM; with a GPU, the plan's limit. Not here: the kernels by
themselves (bench_kernels.py), comparisons with other runners (tests/peers).
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import psutil

import cpu_experts
import localr1
from cpu_experts.bandwidth import read_limit, ways_by_threads
from cpu_experts.bench import CACHES, MOST, filled_memory
from cpu_experts.cpu import last_cache_bytes
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import LocalR1Error
from localr1.llm import LLM
from localr1.machine import cpu_name
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.source import Source, open_source
from localr1.progress import ProgressLine

ROUNDS = 5
PREFILL_TOKENS = (32, 512)
DECODE_TOKENS = 128
_SET_FOR_SHOW = 4  # enough where the bandwidth is only printed


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `share` of the limit, None where the limit does not apply."""

    name: str
    phase: Literal["load", "prefill", "decode"]
    tokens: int
    threads: int
    value: float
    unit: str
    share: float | None = None


def main(model: str, as_json: bool, **options: Any) -> None:
    """Run the benchmark (see `run`) and print it; with `as_json` only the line of JSON."""
    result = run(model, **options)
    if not as_json:
        print(card(result))
    print(json.dumps(result))


def run(model: str, **options: Any) -> dict[str, Any]:
    """Measure; the result is what the line of JSON holds. `options` are those of `localr1.load`."""
    began = time.perf_counter()
    with ProgressLine(sys.stderr) as progress:
        llm = localr1.load(model, engine="hybrid", progress=progress.show, **options)
    load_seconds = time.perf_counter() - began
    for note in llm.engine.notes:
        print(note, file=sys.stderr)
    used = cpu_experts.get_threads()
    source = open_source(llm.path)
    touched = bytes_per_token(source, llm.config)
    # What fits the cache is not read from RAM, and RAM is then no limit.
    placed = llm.engine.placement
    gpu = placed is not None and bool(placed.gpu)
    applies = source.nbytes > last_cache_bytes() or gpu
    bandwidth, working_set = read_bandwidth(CACHES if applies and not gpu else _SET_FOR_SHOW)
    decode_limit = bandwidth * 1e9 / touched
    if placed is not None and gpu:
        decode_limit = placed.prediction.decode_limit_tps
    limits = {
        "read_bandwidth": bandwidth,
        "read_bandwidth_unit": "GB/s",
        "read_bandwidth_method": f"prefetched reads of {working_set / 1e9:.1f} GB",
        "bytes_per_token": touched,
        "decode": decode_limit,
        "decode_unit": "tokens/s",
        "applies": applies,
    }
    rows = [Row("load", "load", 0, used, load_seconds, "s")]
    rows += [_prefill(llm, tokens, used) for tokens in PREFILL_TOKENS if _fits(llm, tokens)]
    rows.append(_first_token(llm, used))
    rows.append(_decode(llm, used, decode_limit if applies else None))
    return {
        "machine": machine(),
        "model": llm.name,
        "limits": limits,
        "rows": [asdict(row) for row in rows],
    }


def _fits(llm: LLM, tokens: int) -> bool:
    return tokens < llm.engine.max_context


def _prompt(llm: LLM, tokens: int, seed: int) -> list[int]:
    """Random ids: a new seed makes a prompt of which the cache holds no beginning."""
    choose = random.Random(seed)
    return [choose.randrange(llm.config.vocab_size) for _ in range(tokens)]


def _seconds_to_read(llm: LLM, ids: list[int]) -> float:
    began = time.perf_counter()
    for _ in llm.engine.prefill(ids):
        pass
    return time.perf_counter() - began


def _prefill(llm: LLM, tokens: int, threads: int) -> Row:
    """Prompt tokens read per second; the median of rounds, the first of which is not counted."""
    took = [_seconds_to_read(llm, _prompt(llm, tokens, seed)) for seed in range(ROUNDS + 1)]
    return Row(
        "prefill", "prefill", tokens, threads, tokens / statistics.median(took[1:]), "tokens/s"
    )


def _first_token(llm: LLM, threads: int) -> Row:
    """Seconds from a short prompt to its first token."""
    tokens = min(PREFILL_TOKENS[0], llm.engine.max_context - 1)
    took = []
    for seed in range(ROUNDS + 1):
        ids = _prompt(llm, tokens, seed + 1000)
        began = time.perf_counter()
        next(llm.generate(ids, SamplingParams(temperature=0)), None)
        took.append(time.perf_counter() - began)
    return Row("first token", "prefill", tokens, threads, statistics.median(took[1:]), "s")


def _decode(llm: LLM, threads: int, limit: float | None) -> Row:
    """Tokens written per second, greedily, past any end of text; the median of rounds."""
    prompt = _prompt(llm, min(32, llm.engine.max_context // 2), 2000)
    tokens = min(DECODE_TOKENS, llm.engine.max_context - len(prompt))
    speeds = []
    for _ in range(ROUNDS + 1):
        _seconds_to_read(llm, prompt)
        sampler, token = Sampler(SamplingParams(temperature=0), prompt), prompt[-1]
        began = time.perf_counter()
        for _ in range(tokens):
            token = llm.engine.runner.draw(sampler, llm.engine.step(token))
        speeds.append(tokens / (time.perf_counter() - began))
    value = statistics.median(speeds[1:])
    share = value / limit if limit else None
    if share is not None and share > MOST:
        hint = "another program may have used the memory meanwhile; run it again on a quiet machine"
        raise LocalR1Error(
            f"decode reached {share:.2f} of the limit, so that was measured badly", hint
        )
    return Row("decode", "decode", tokens, threads, value, "tokens/s", share)


def bytes_per_token(weights: Source, config: Config) -> int:
    """Weight bytes that decoding one token reads (the cache of the conversation not counted)."""
    tied = "output.weight" not in weights
    return sum(
        _bytes_read(name, weights[name].nbytes, config)
        for name in weights.names()
        if name != "token_embd.weight" or tied
    )


def _bytes_read(name: str, nbytes: int, config: Config) -> int:
    """What one token needs of a tensor: all, the chosen experts, or nothing of an MTP layer."""
    layer = name.split(".")[1] if name.startswith("blk.") else "0"
    if int(layer) >= config.n_layers:
        return 0
    if "_exps." in name and isinstance(config, ModelConfig):
        return nbytes * config.n_experts_per_tok // config.n_routed_experts
    return nbytes


def read_bandwidth(caches: int) -> tuple[float, int]:
    """The best read bandwidth over thread counts, in GB/s, and the working set in bytes.

    The set is as large as `caches` last caches, or a third of the free RAM.
    """
    wanted = max(caches * last_cache_bytes(), 1 << 28)
    memory = filled_memory(min(wanted, psutil.virtual_memory().available // 3))
    ways = ways_by_threads(memory)
    best = max(max(read_limit(memory, ways).values()) for _ in range(3))
    return best / 1e9, memory.nbytes


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "last_cache_bytes": last_cache_bytes(),
        "ram_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numba", "numpy")},
        "localr1": localr1.__version__,
    }


def card(result: dict[str, Any]) -> str:
    """The result for a person."""
    host, limits = result["machine"], result["limits"]
    ram = f"{host['ram_bytes'] / 2**30:.0f} GiB"
    limit = (
        f"{limits['decode']:.1f} tokens/s" if limits["applies"] else "none: it fits the CPU's cache"
    )
    lines = [
        f"{result['model']} on {host['cpu']}, {host['cores']} cores, {ram}",
        f"  memory reads   {limits['read_bandwidth']:.1f} GB/s ({limits['read_bandwidth_method']})",
        f"  a token reads  {limits['bytes_per_token'] / 1e6:,.1f} MB; limit of decode: {limit}",
        "",
    ]
    for row in result["rows"]:
        share = f"   {row['share']:.0%} of the limit" if row["share"] is not None else ""
        tokens = f"{row['tokens']} tokens" if row["tokens"] else ""
        value = f"{row['value']:,.2f}" if row["unit"] == "s" else f"{row['value']:,.1f}"
        lines.append(
            f"  {row['name']:<12} {tokens:>11} {row['threads']:>3} threads"
            f" {value:>10} {row['unit']}{share}"
        )
    return "\n".join(lines)
