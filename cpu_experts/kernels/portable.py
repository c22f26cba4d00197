"""The portable tier: plain Numba, correct on every CPU, vectorised by LLVM where it can.

A format brings `unpack(block, values, scales, minima)`: it writes a block's numbers as int8, and
for every sub-block of 16 or 32 a float32 scale and minimum, so that weight = scale * value -
minimum. All GGUF formats of ours have that form. The drivers here do the rest; float formats bring
`unpack(source, n, target)` instead. Each format module wraps the drivers in functions of its own,
because Numba's disk cache only finds drivers that name their kernel.

Arguments, all int64: `w` the matrix's address, `stride` bytes per row, the rows `row0` to `row0 +
n_rows`, `cols` values per row, `aux` the address of extra scales (FP8), `acts` the address of
`n_tokens` activation-row addresses, `out` the address of the result of row `row0` and token 0,
`out_stride` bytes between tokens (0 for two terms of one token, whose products are added up),
`scratch` half a MiB of this thread's own.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import inner
from cpu_experts.layout import scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import load_f32, load_i8, load_i16, load_i64, store_f32

SCALES, MINIMA = 256, 512  # offsets in scratch: values, then 16 scales, then 16 minima


@inner(inline="always")
def dequantise(
    unpack, block, block_bytes, sub, w, stride, row0, n_rows, cols, out, out_stride, tmp
):
    """Rows as float32 at `out`, with exactly gguf-py's roundings: (d * scale) * q - minimum."""
    for r in range(n_rows):
        source = w + (row0 + r) * stride
        target = out + r * out_stride
        for b in range(cols // block):
            unpack(source + b * block_bytes, tmp, tmp + SCALES, tmp + MINIMA)
            for s in range(block // sub):
                scale = load_f32(tmp + SCALES + 4 * s)
                minimum = load_f32(tmp + MINIMA + 4 * s)
                for i in range(s * sub, s * sub + sub):
                    value = np.float32(load_i8(tmp + i))
                    store_f32(target + 4 * (b * block + i), scale * value - minimum)


@inner
def _dot_int8(a, b, n):
    total = np.int32(0)
    for i in range(n):
        total = np.int32(total + np.int32(load_i8(a + i) * load_i8(b + i)))
    return total


@inner(inline="always")
def rows_quantised(
    unpack,
    block,
    block_bytes,
    sub,
    w,
    stride,
    row0,
    n_rows,
    cols,
    acts,
    n_tokens,
    out,
    out_stride,
    tmp,
):
    """out[t, r] = row r . activation t, for int8 activations in blocks of `block`."""
    sums = sums16_offset(cols, block) if sub == 16 else sums32_offset(cols, block)
    n_sub = block // sub
    for r in range(n_rows):
        source = w + (row0 + r) * stride
        for t in range(n_tokens):
            store_f32(out + t * out_stride + 4 * r, 0.0)
        for b in range(cols // block):
            unpack(source + b * block_bytes, tmp, tmp + SCALES, tmp + MINIMA)
            for t in range(n_tokens):
                act = load_i64(acts + 8 * t)
                total = 0.0
                for s in range(n_sub):
                    dot = _dot_int8(tmp + s * sub, act + b * block + s * sub, sub)
                    total += load_f32(tmp + SCALES + 4 * s) * dot
                    act_sum = load_i16(act + sums + 2 * (b * n_sub + s))
                    total -= load_f32(tmp + MINIMA + 4 * s) * act_sum
                place = out + t * out_stride + 4 * r
                scale = load_f32(act + scales_offset(cols) + 4 * b)
                store_f32(place, load_f32(place) + scale * total)


@inner(fastmath={"reassoc", "contract", "nsz"})
def dot_float(a, b, n):
    """Sum of a[i] * b[i] over float32 at two addresses, in the order LLVM's vectors choose."""
    total = load_f32(a) * load_f32(b)
    for i in range(1, n):
        total += load_f32(a + 4 * i) * load_f32(b + 4 * i)
    return total


@inner(inline="always")
def rows_float(unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, tmp):
    """out[t, r] = row r . activation t, float32 throughout, in pieces of 4,096 columns."""
    for r in range(n_rows):
        for t in range(n_tokens):
            store_f32(out + t * out_stride + 4 * r, 0.0)
        for start in range(0, cols, 4096):
            n = min(4096, cols - start)
            unpack(w, stride, row0 + r, start, n, cols, aux, tmp)
            for t in range(n_tokens):
                place = out + t * out_stride + 4 * r
                act = load_i64(acts + 8 * t) + 4 * start
                store_f32(place, load_f32(place) + dot_float(tmp, act, n))
