"""The avx512_vnni tier for few tokens: one row at a time, as fast as its bytes arrive.

A format brings `unpack_vectors(block)`. It gives the 256 weights of a superblock as four registers of
unsigned bytes, in the order of the activations, and what turns dot products of those bytes into the
result. Weights are unpacked once and meet up to 8 tokens. Signed weights are offset to unsigned ones
(VPDPBUSD wants that); the offset comes back as a correction through the activation's sums.
"""

from __future__ import annotations

from numba import njit

from cpu_experts.layout import scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import load_f32, load_i64, load_u8, store_f32, store_i8
from cpu_experts.vectors import (
    add_floats,
    dot_bytes,
    dot_words,
    fma,
    load,
    load256,
    load_floats,
    load_floats256,
    multiply256,
    multiply_add16,
    prefetch,
    splat_float,
    splat_float256,
    spread_floats,
    store_floats,
    sum_floats,
    to_floats,
    to_floats256,
    widen_floats,
    words_to_floats,
    zero,
    zero_floats,
)

AHEAD = 4608  # bytes between a load and its prefetch: past the page, within the nearest cache
TOKENS = 8

_FIRST, _SECOND, _THIRD, _FOURTH = (spread_floats([2 * i] * 8 + [2 * i + 1] * 8) for i in range(4))


@njit
def _start(n, sums):
    for t in range(n):
        store_floats(zero_floats(), sums + 64 * t)


@njit
def _finish(n, sums, out, out_stride):
    for t in range(n):
        store_f32(out + t * out_stride, sum_floats(load_floats(sums + 64 * t)))


@njit
def _prefetch_block(block, n_bytes):
    for line in range((n_bytes + 63) // 64):
        prefetch(block + AHEAD + 64 * line)


@njit(error_model="numpy")
def rows_integer(
    unpack, n_bytes, w, stride, row0, n_rows, cols, acts, n_tokens, out, out_stride, tmp
):
    """Superblocks whose scales are integers: the sub-block scales are applied in integers too.

    unpack -> four vectors of bytes, four of scales (an int16 in each 32-bit lane: 4 products fit int16,
    so VPDPWSSD multiplies and adds them in one step), sixteen int16 corrections for the sums of 16, and
    the float factors of both.
    """
    scales, sums16 = scales_offset(cols), sums16_offset(cols, 256)
    for first in range(0, n_tokens, TOKENS):
        n = min(TOKENS, n_tokens - first)
        for r in range(n_rows):
            source = w + (row0 + r) * stride
            _start(n, tmp)
            for b in range(cols // 256):
                block = source + b * n_bytes
                _prefetch_block(block, n_bytes)
                u0, u1, u2, u3, s0, s1, s2, s3, offsets, d, d_offset = unpack(block)
                for t in range(n):
                    act = load_i64(acts + 8 * (first + t))
                    q = act + 256 * b
                    dot = dot_words(zero(), dot_bytes(zero(), u0, load(q)), s0)
                    dot = dot_words(dot, dot_bytes(zero(), u1, load(q + 64)), s1)
                    dot = dot_words(dot, dot_bytes(zero(), u2, load(q + 128)), s2)
                    dot = dot_words(dot, dot_bytes(zero(), u3, load(q + 192)), s3)
                    scale = load_f32(act + scales + 4 * b)
                    total = load_floats(tmp + 64 * t)
                    total = fma(to_floats(dot), splat_float(d * scale), total)
                    back = to_floats256(multiply_add16(offsets, load256(act + sums16 + 32 * b)))
                    total = fma(widen_floats(back), splat_float(-d_offset * scale), total)
                    store_floats(total, tmp + 64 * t)
            _finish(n, tmp, out + first * out_stride + 4 * r, out_stride)


@njit(error_model="numpy")
def _add_group(u0, u1, u2, u3, d, correction, n, acts, group, scales, sums32, narrow, tmp):
    """256 weights with a float scale per 32 against n tokens."""
    for t in range(n):
        act = load_i64(acts + 8 * t)
        q = act + 256 * group
        if narrow:
            scale = load_floats256(act + scales + 32 * group)
        else:
            scale = splat_float256(load_f32(act + scales + 4 * group))
        factor = multiply256(d, scale)
        total = load_floats(tmp + 64 * t)
        total = fma(to_floats(dot_bytes(zero(), u0, load(q))), _FIRST(factor), total)
        total = fma(to_floats(dot_bytes(zero(), u1, load(q + 64))), _SECOND(factor), total)
        total = fma(to_floats(dot_bytes(zero(), u2, load(q + 128))), _THIRD(factor), total)
        total = fma(to_floats(dot_bytes(zero(), u3, load(q + 192))), _FOURTH(factor), total)
        sums = words_to_floats(act + sums32 + 16 * group)
        back = multiply256(multiply256(correction, scale), sums)
        store_floats(add_floats(total, widen_floats(back)), tmp + 64 * t)


@njit(error_model="numpy")
def _copy_tail(source, n_bytes, target, n_target):
    """The last blocks of a row, followed by zeros: a zero scale takes what follows out."""
    for i in range(n_bytes):
        store_i8(target + i, load_u8(source + i))
    for i in range(n_bytes, n_target):
        store_i8(target + i, 0)


@njit(error_model="numpy")
def rows_scaled(
    unpack, block, n_bytes, w, stride, row0, n_rows, cols, acts, n_tokens, out, out_stride, tmp
):
    """256 weights at a time with a float scale per 32; `block` values share an activation scale.

    unpack -> four vectors of bytes, eight float scales, and eight float corrections: what the sum of a
    sub-block's activations is multiplied with. Rows of 32-value blocks may end in a part of a group.
    """
    narrow = block == 32
    group_bytes = n_bytes * 8 if narrow else n_bytes
    scales, sums32 = scales_offset(cols), sums32_offset(cols, block)
    whole, rest = cols // 256, cols % 256 // 32 * n_bytes
    tail = tmp + 64 * TOKENS
    for first in range(0, n_tokens, TOKENS):
        n = min(TOKENS, n_tokens - first)
        table = acts + 8 * first
        for r in range(n_rows):
            source = w + (row0 + r) * stride
            _start(n, tmp)
            for g in range(whole):
                place = source + g * group_bytes
                _prefetch_block(place, group_bytes)
                u0, u1, u2, u3, d, correction = unpack(place)
                _add_group(u0, u1, u2, u3, d, correction, n, table, g, scales, sums32, narrow, tmp)
            if rest:
                _copy_tail(source + whole * group_bytes, rest, tail, group_bytes)
                u0, u1, u2, u3, d, correction = unpack(tail)
                _add_group(
                    u0, u1, u2, u3, d, correction, n, table, whole, scales, sums32, narrow, tmp
                )
            _finish(n, tmp, out + first * out_stride + 4 * r, out_stride)
