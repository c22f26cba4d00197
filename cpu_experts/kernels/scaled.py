"""The avx512_vnni tier for few tokens of formats with a float scale per 32 weights: see vnni.py."""

from __future__ import annotations

from cpu_experts.cache import inner
from cpu_experts.kernels.streams import (
    SCRATCH,
    STEP,
    first_row,
    prefetch_block,
    prefetch_first,
    rows_at_once,
    split_rows,
    start_streams,
    terms_of,
    token_terms,
)
from cpu_experts.layout import scales_offset, sums32_offset
from cpu_experts.memory import load_f32, load_i64, store_f32, store_i64
from cpu_experts.row_vectors import fma256, low_blocks, shift_words_left8
from cpu_experts.vectors import (
    add_floats,
    dot_bytes,
    fma,
    load,
    load_floats,
    load_floats256,
    multiply,
    multiply256,
    splat_float256,
    spread_floats,
    store_floats,
    sum_floats,
    to_floats,
    widen_floats,
    words_to_floats,
    zero,
    zero_floats,
)

_FIRST, _SECOND, _THIRD, _FOURTH = (spread_floats([2 * i] * 8 + [2 * i + 1] * 8) for i in range(4))


@inner(forceinline=True)
def _products(first, second, q, other):
    """Dot products of two registers with 128 activations, or with their two terms: 256 a + b."""
    x = dot_bytes(zero(), first, load(q))
    y = dot_bytes(zero(), second, load(q + 64))
    if other != 0:
        x = dot_bytes(shift_words_left8(x), first, load(q + other))
        y = dot_bytes(shift_words_left8(y), second, load(q + other + 64))
    return to_floats(x), to_floats(y)


@inner(forceinline=True)
def _dot_scaled(unpacked, act, other, first, scales, sums32, narrow, half):
    """256 weights with a float scale per 32, from block `first` of a row on: 16 partial sums.

    Against one activation, or with `other` not 0 against its two terms, which lie so many bytes
    apart and whose scales are 256 to 1. `half`: only the first 128 weights count.
    """
    u0, u1, u2, u3, d, correction = unpacked
    if narrow:
        scale = load_floats256(act + other + scales + 4 * first)
    else:
        scale = splat_float256(load_f32(act + other + scales + first // 8 * 4))
    factor, sums = multiply256(d, scale), words_to_floats(act + sums32 + 2 * first)
    if other != 0:
        less = words_to_floats(act + other + sums32 + 2 * first)
        sums = fma256(sums, splat_float256(256.0), less)
    back = multiply256(multiply256(correction, scale), sums)
    even = widen_floats(low_blocks(back) if half else back)
    place = act + 32 * first
    x, y = _products(u0, u1, place, other)
    even = fma(x, _FIRST(factor), even)
    odd = multiply(y, _SECOND(factor))
    if not half:
        x, y = _products(u2, u3, place + 128, other)
        even = fma(x, _THIRD(factor), even)
        odd = fma(y, _FOURTH(factor), odd)
    return add_floats(even, odd)


@inner
def _whole_group(place, group, end, rest, tail):
    """The group at `place`, or a copy with zeros where memory may end behind its `rest` bytes."""
    if place + group <= end:
        return place
    for i in range(rest, group, 8):  # rest and group are even, and no less than 18
        store_i64(tail + i, 0)
    for i in range(0, rest - 8, 8):
        store_i64(tail + i, load_i64(place + i))
    store_i64(tail + rest - 8, load_i64(place + rest - 8))
    return tail


@inner(forceinline=True)
def _short_rows(unpack, n_bytes, narrow, act, other, start, stride, n_rows, cols, out, tmp):
    """Rows of at most STEP groups: a turn of a stream is a row."""
    group = n_bytes * 8 if narrow else n_bytes
    scales, sums32 = scales_offset(cols), sums32_offset(cols, 32 if narrow else 256)
    whole, blocks, tail = cols // 256, cols // 32, tmp + SCRATCH
    end, (streams, length) = start + n_rows * stride, split_rows(n_rows)
    for r in range(length):
        for i in range(streams):
            row = first_row(i, length, n_rows) + r
            place, total = start + row * stride, zero_floats()
            prefetch_block(place, stride, end)
            for g in range(whole):
                found = _dot_scaled(unpack(place), act, other, 8 * g, scales, sums32, narrow, False)
                total = add_floats(total, found)
                place += group
            for block in range(8 * whole, blocks, 4):  # the rest, by half groups
                left = (blocks - block) * n_bytes
                unpacked = unpack(_whole_group(place, group, end, left, tail))
                found = _dot_scaled(unpacked, act, other, block, scales, sums32, narrow, True)
                total = add_floats(total, found)
                place += group // 2
            store_f32(out + 4 * row, sum_floats(total))


@inner(forceinline=True)
def _long_rows(unpack, n_bytes, narrow, act, other, start, stride, n_rows, cols, out, tmp):
    """Rows of more groups than a turn has; their sums wait in scratch."""
    group = n_bytes * 8 if narrow else n_bytes
    scales, sums32 = scales_offset(cols), sums32_offset(cols, 32 if narrow else 256)
    groups, rest, tail = (cols + 255) // 256, cols % 256 // 32 * n_bytes, tmp + SCRATCH
    end, (streams, length) = start + n_rows * stride, split_rows(n_rows)
    for r in range(length):
        for first in range(0, groups, STEP):
            last = min(first + STEP, groups)
            for i in range(streams):
                row = first_row(i, length, n_rows) + r
                place = start + row * stride + first * group
                prefetch_block(place, STEP * group, end)
                total = zero_floats() if first == 0 else load_floats(tmp + 64 * i)
                for g in range(first, last):
                    if rest > 0 and g == groups - 1:
                        place = _whole_group(place, group, end, rest, tail)
                    unpacked = unpack(place)
                    found = _dot_scaled(unpacked, act, other, 8 * g, scales, sums32, narrow, False)
                    total = add_floats(total, found)
                    place += group
                store_floats(total, tmp + 64 * i)
        for i in range(streams):
            row = first_row(i, length, n_rows) + r
            store_f32(out + 4 * row, sum_floats(load_floats(tmp + 64 * i)))


@inner(inline="always")
def rows_scaled(
    unpack, block, n_bytes, w, stride, row0, n_rows, cols, acts, n_tokens, out, out_stride, tmp
):
    """256 weights at a time with a float scale per 32; `block` values share an activation scale.

    unpack -> four vectors of bytes, eight float scales, and eight float corrections: what the sum
    of a sub-block's activations is multiplied with. Rows of 32-value blocks may end in a part of a
    group: what follows them, the next row, meets activations and activation scales of zero.
    """
    narrow, terms = block == 32, terms_of(n_tokens, out_stride)
    together = rows_at_once(n_rows, n_tokens, terms)
    for first in range(0, n_rows, together):
        start = w + (row0 + first) * stride
        n = min(together, n_rows - first)
        end = start + n * stride
        prefetch_first(start, end)
        start_streams(start, stride, n, end)
        for t in range(0, n_tokens, terms):
            act, first_term = token_terms(acts, t, terms)
            # Both terms by the first's address, and how far the second lies from it.
            other = act - first_term if first_term != 0 else 0
            act, place = act - other, out + t * out_stride + 4 * first
            if cols > 256 * STEP:
                _long_rows(unpack, n_bytes, narrow, act, other, start, stride, n, cols, place, tmp)
            elif other != 0:
                _short_rows(unpack, n_bytes, narrow, act, other, start, stride, n, cols, place, tmp)
            else:  # a copy without branches in its loop: short rows have a tenth to lose
                _short_rows(unpack, n_bytes, narrow, act, 0, start, stride, n, cols, place, tmp)
