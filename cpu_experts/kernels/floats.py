"""The avx512_vnni tier for float weights: widened to float32 in registers.

A format brings `widen(address)`: 16 weights as a vector of float32. Activations stay float32.
"""

from __future__ import annotations

from cpu_experts.cache import inner
from cpu_experts.kernels.portable import rows_float
from cpu_experts.memory import load_f32, load_i64, prefetch_stream, store_f32
from cpu_experts.vectors import (
    add_floats,
    fma,
    load_floats,
    splat_float,
    store_floats,
    sum_floats,
    zero_floats,
)

AHEAD = 2048
_TOKENS = 4  # share each load of weights


@inner
def dot(widen, n_bytes, source, act, cols):
    """One row . one activation over whole 64s of columns, in four chains: 16 partial sums."""
    a, b, c, d = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for i in range(0, cols, 64):
        place, x = source + i * n_bytes, act + 4 * i
        for line in range(0, 64 * n_bytes, 64):
            prefetch_stream(place + AHEAD + line)
        a = fma(widen(place), load_floats(x), a)
        b = fma(widen(place + 16 * n_bytes), load_floats(x + 64), b)
        c = fma(widen(place + 32 * n_bytes), load_floats(x + 128), c)
        d = fma(widen(place + 48 * n_bytes), load_floats(x + 192), d)
    return add_floats(add_floats(a, b), add_floats(c, d))


@inner
def _dot_four(widen, n_bytes, source, acts, cols, sums):
    """One row . four activations over whole 16s: four times 16 partial sums at `sums`."""
    a, b, c, d = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    x, y, z, u = load_i64(acts), load_i64(acts + 8), load_i64(acts + 16), load_i64(acts + 24)
    for i in range(0, cols, 16):
        weights = widen(source + i * n_bytes)
        a = fma(weights, load_floats(x + 4 * i), a)
        b = fma(weights, load_floats(y + 4 * i), b)
        c = fma(weights, load_floats(z + 4 * i), c)
        d = fma(weights, load_floats(u + 4 * i), d)
    store_floats(a, sums)
    store_floats(b, sums + 64)
    store_floats(c, sums + 128)
    store_floats(d, sums + 192)


@inner(inline="always")
def rows_widened(
    widen, unpack, n_bytes, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, tmp
):
    """out[t, r] = row r . activation t. Rows that are not whole 64s take the portable way."""
    if cols % 64:
        rows_float(unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, tmp)
        return
    for r in range(n_rows):
        source = w + (row0 + r) * stride
        t = 0
        while t + _TOKENS <= n_tokens:
            _dot_four(widen, n_bytes, source, acts + 8 * t, cols, tmp)
            for i in range(_TOKENS):
                place = out + (t + i) * out_stride + 4 * r
                store_f32(place, sum_floats(load_floats(tmp + 64 * i)))
            t += _TOKENS
        for last in range(t, n_tokens):
            total = dot(widen, n_bytes, source, load_i64(acts + 8 * last), cols)
            store_f32(out + last * out_stride + 4 * r, sum_floats(total))


@inner(inline="always")
def rows_tiled(
    widen, unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, tmp
):
    """rows_widened for one byte a weight and a float32 scale per 128 x 128 weights (`aux`)."""
    if cols % 128:
        rows_float(unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, tmp)
        return
    for r in range(n_rows):
        source = w + (row0 + r) * stride
        scales = aux + 4 * ((row0 + r) // 128 * (cols // 128))
        for t in range(n_tokens):
            act, total = load_i64(acts + 8 * t), zero_floats()
            for tile in range(cols // 128):
                part = dot(widen, 1, source + 128 * tile, act + 512 * tile, 128)
                total = fma(part, splat_float(load_f32(scales + 4 * tile)), total)
            store_f32(out + t * out_stride + 4 * r, sum_floats(total))
