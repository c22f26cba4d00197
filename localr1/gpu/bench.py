"""Measure the linear kernels on this machine's GPU, in R1's shapes: `python -m localr1.gpu.bench`.

Each product is captured many times into one CUDA graph, over copies of its weights that exceed the
L2 cache several times, and the graph's replays are timed with events: what a decoded token sees,
launches included. The limit is the best of a read and a copy, measured in the same run. The last
line is one JSON object. `--sweep` also tries other tiles than those that tiles.py would choose.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from localr1.gpu.activations import Activations
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.launch import Configuration, architecture, function, launch
from localr1.gpu.linear import gated_gemv, gemv, matmul
from localr1.gpu.linear_configurations import configurations, gemv_configuration
from localr1.gpu.tiles import GemvTile, gemv_tile
from localr1.gpu.warmup import warmup
from localr1.gpu.weights import GpuWeight

_WORKING_SET = 384 << 20  # bytes: several times any L2
_MOST_COPIES = 64
_REPLAYS = 15


class Shape(NamedTuple):
    """A product of R1: a stack of `n` matrices, how often a token meets it."""

    name: str
    n: int
    rows: int
    cols: int
    gated: bool
    layers: int


R1_SHAPES = [
    Shape("q_a + kv_a", 1, 2112, 7168, False, 61),
    Shape("q_b", 1, 24576, 1536, False, 61),
    Shape("k_b", 128, 512, 128, False, 61),
    Shape("v_b", 128, 128, 512, False, 61),
    Shape("output", 1, 7168, 16384, False, 61),
    Shape("shared gate up", 1, 2048, 7168, True, 58),
    Shape("shared down", 1, 7168, 2048, False, 58),
    Shape("dense gate up", 1, 18432, 7168, True, 3),
    Shape("dense down", 1, 7168, 18432, False, 3),
    Shape("head", 1, 129280, 7168, False, 1),
]


@triton.jit
def read_kernel(source, out, n, BLOCK: tl.constexpr):
    """Reads 4 * BLOCK words a program; writes where their sum is a number that it never is."""
    start = tl.program_id(0).to(tl.int64) * (4 * BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for part in tl.static_range(4):
        place = start + part * BLOCK + tl.arange(0, BLOCK)
        total |= tl.load(source + place, mask=place < n, other=0)
    if tl.max(total, 0) == 0x7FFFFFF1:
        tl.store(out, 1)


def graph_seconds(run: Callable[[int], object], n: int) -> float:
    """Seconds of one of `run(0)` ... `run(n - 1)`, captured one after the other; the median."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            run(i)
    times = []
    for _ in range(_REPLAYS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / n)
    return statistics.median(times[2:])


def limits() -> dict[str, float]:
    """Bytes a second of a read and of a copy (both directions), and seconds of an empty launch."""
    source = torch.randint(0, 2**30, (1 << 28,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    block = 1024
    programs = triton.cdiv(source.numel(), 4 * block)

    def read(_: int) -> None:
        launch(read_kernel, (programs,), source, target, source.numel(), BLOCK=block)

    found = {
        "read": source.nbytes / graph_seconds(read, 4),
        "copy": 2 * source.nbytes / graph_seconds(lambda _: target.copy_(source), 4),
    }
    tiny = source[:block]
    found["launch"] = graph_seconds(
        lambda _: launch(read_kernel, (1,), tiny, target, block, BLOCK=block), 200
    )
    return found


def copies(name: str, shape: Shape) -> list[GpuWeight]:
    """Weights of random bytes, as many of them as the working set takes."""
    layout = GPU_FORMATS[name]
    matrices = 2 if shape.gated else shape.n
    full = (matrices, shape.rows, shape.cols) if matrices > 1 else (shape.rows, shape.cols)
    n_blocks = matrices * shape.rows * shape.cols // layout.block_values
    n_bytes = n_blocks * layout.block_bytes
    n_copies = max(2, min(_MOST_COPIES, -(-_WORKING_SET // n_bytes)))
    scales = None
    if name == "FP8_E4M3":
        tiles = -(-shape.rows // 128) * -(-shape.cols // 128)
        scales = torch.rand(matrices * tiles, device="cuda")
    return [
        GpuWeight(
            name, full, torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device="cuda"), scales
        )
        for _ in range(n_copies)
    ]


def inputs(shape: Shape, n_tokens: int) -> torch.Tensor:
    """Activations for a shape, float32 as a model's."""
    between = (shape.n,) if shape.n > 1 else ()
    return torch.randn(n_tokens, *between, shape.cols, device="cuda")


def gemv_seconds(
    weights: list[GpuWeight], shape: Shape, x: torch.Tensor, tile: GemvTile | None = None
) -> float:
    """Seconds of one product; what several share, the activations as integers, is made before."""
    out = torch.empty(*x.shape[:-1], shape.rows, device="cuda")
    run, given = (gated_gemv if shape.gated else gemv), Activations(x)
    n = max(len(weights), 16)
    return graph_seconds(lambda i: run(given, weights[i % len(weights)], out, tile=tile), n)


def candidates(name: str, arch: int) -> Iterator[GemvTile]:
    """Tiles worth trying for one token."""
    ways: list[tuple[int, int | None]] = [(1, None), (2, None), (4, None)]  # unroll, registers
    if GPU_FORMATS[name].integer:
        ways = [(1, None), (1, 64), (1, 96), (1, 128)]
    for repeat, (rows, width, warps), (unroll, registers) in itertools.product(
        (1, 2, 4, 8), ((1, 32, 1), (2, 16, 1), (4, 8, 1), (1, 64, 2), (1, 128, 4)), ways
    ):
        if repeat * unroll <= 8 and repeat * GPU_FORMATS[name].groups <= 16:
            yield GemvTile(repeat, rows, width, unroll, warps, registers)


def fits(name: str, shape: Shape) -> bool:
    return shape.cols % GPU_FORMATS[name].block_values == 0


def compile_all(formats: list[str], tokens: list[int], sweep: bool) -> int:
    """Compile what will be timed, on all cores; how many kernels were missing."""
    arch = architecture()
    wanted: list[Configuration] = [*configurations(arch, formats=formats, tokens=tokens)]
    for name in formats if sweep else []:
        for tile, gated in itertools.product(candidates(name, arch), (False, True)):
            wanted.append(gemv_configuration(name, tile, 1, gated, "*fp32", "*fp32", None))
    total = 0
    for done, total in warmup(wanted, arch):
        if total and done % 50 == 0:
            print(f"compiled {done} of {total}", flush=True)
    return total


def decode_rows(
    formats: list[str], tokens: list[int], limit: float, sweep: bool
) -> Iterator[dict[str, Any]]:
    """A row for each format, shape and number of tokens."""
    for name, shape in itertools.product(formats, R1_SHAPES):
        if not fits(name, shape):
            continue
        weights = copies(name, shape)
        n_bytes = weights[0].nbytes
        for n in tokens:
            x = inputs(shape, n)
            rows = shape.rows * (1 if shape.gated else shape.n)
            tile = gemv_tile(architecture(), name, rows, shape.cols, n, shape.gated)
            seconds = gemv_seconds(weights, shape, x)
            row = {"format": name, "shape": shape.name, "tokens": n, "us": seconds * 1e6}
            row |= {"GB/s": n_bytes / seconds / 1e9, "share": n_bytes / seconds / limit}
            row |= {"tile": tuple_of(tile)}
            if sweep and n == 1:
                tried = {
                    tuple_of(other): gemv_seconds(weights, shape, x, other) * 1e6
                    for other in candidates(name, architecture())
                }
                row["best"] = sorted(tried.items(), key=lambda item: item[1])[:4]
            yield row
        del weights
        torch.cuda.empty_cache()


def tuple_of(tile: GemvTile) -> tuple[int | None, ...]:
    """repeat, rows, width, unroll, warps, registers at most."""
    return astuple(tile)


def prefill_seconds(name: str, shape: Shape, x: torch.Tensor) -> float:
    """Seconds of a product with many tokens; "torch" is its own, of bf16 weights."""
    if name == "torch":
        plain = torch.randn(shape.cols, shape.rows, device="cuda").bfloat16()
        rounded = x.bfloat16()
        return graph_seconds(lambda _: rounded @ plain, 4)
    weights = copies(name, shape)
    out = torch.empty(len(x), shape.rows, device="cuda")
    return graph_seconds(lambda i: matmul(x, weights[i % 2], out), 4)


def prefill_rows(formats: list[str]) -> Iterator[dict[str, Any]]:
    """TFLOP/s of products with many tokens, beside torch's own in bf16."""
    for name, shape, n in itertools.product([*formats, "torch"], R1_SHAPES, (64, 1024, 4096)):
        if shape.gated or shape.n > 1 or shape.name == "head":
            continue
        if name != "torch" and not fits(name, shape):
            continue
        seconds = prefill_seconds(name, shape, inputs(shape, n))
        flops = 2 * n * shape.rows * shape.cols
        row = {"format": name, "shape": shape.name, "tokens": n, "us": seconds * 1e6}
        yield row | {"TFLOP/s": flops / seconds / 1e12}


def registers(formats: list[str]) -> Iterator[dict[str, Any]]:
    """Registers and spilled bytes of the kernels that decode one token."""
    for name in formats:
        tile = gemv_tile(architecture(), name, 7168, 16384, 1)
        made = function(gemv_configuration(name, tile, 1, False, "*fp32", "*fp32", None), 0)
        used, spilled = made.registers
        yield {"format": name, "tile": tuple_of(tile), "registers": used, "spilled": spilled}


def main() -> None:
    """Print tables, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--formats", default="Q4_K,Q6_K,Q8_0")
    parser.add_argument("--tokens", default="1", help="numbers of tokens decoded at once")
    parser.add_argument("--sweep", action="store_true", help="try other tiles")
    parser.add_argument("--prefill", action="store_true", help="time long prompts too")
    options = parser.parse_args()
    formats = list(GPU_FORMATS) if options.formats == "all" else options.formats.split(",")
    tokens = [int(n) for n in options.tokens.split(",")]
    compiled = compile_all(formats, tokens, options.sweep)
    found = limits()
    limit = max(found["read"], found["copy"])
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    print(f"read {found['read'] / 1e9:.0f} GB/s, copy {found['copy'] / 1e9:.0f} GB/s,", end=" ")
    print(f"a launch in a graph {found['launch'] * 1e6:.2f} us; {compiled} kernels compiled")
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), **found}
    result["registers"] = list(registers(formats))
    result["decode"] = []
    for row in decode_rows(formats, tokens, limit, options.sweep):
        result["decode"].append(row)
        line = f"{row['format']:9}{row['shape']:16}{row['tokens']:2} {row['us']:8.1f} us"
        line += f" {row['GB/s']:6.0f} GB/s {row['share']:.2f} {row['tile']}"
        print(line, *(f"{t}: {us:.1f}" for t, us in row.get("best", [])), flush=True)
    if options.prefill:
        result["prefill"] = list(prefill_rows(formats))
        for row in result["prefill"]:
            line = f"{row['format']:9}{row['shape']:16}{row['tokens']:5} {row['us']:9.1f} us"
            print(line, f"{row['TFLOP/s']:6.0f} TFLOP/s")
    for name in formats:
        layers = {shape.name: shape.layers for shape in R1_SHAPES}
        one = [r for r in result["decode"] if r["format"] == name and r["tokens"] == 1]
        total = sum(row["us"] * layers[row["shape"]] for row in one) / 1e3
        print(f"{name}: a token's products with weights, where shapes allow: {total:.2f} ms")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
