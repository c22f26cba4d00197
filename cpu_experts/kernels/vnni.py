"""The avx512_vnni tier for few tokens: rows as fast as their bytes arrive.

A format brings `unpack_vectors(block)`. It gives the 256 weights of a superblock as four registers
of unsigned bytes, in the order of the activations, and what turns dot products of those bytes into
the result. Weights are unpacked once and meet up to 8 tokens. Signed weights are offset to unsigned
ones (VPDPBUSD wants that); the offset comes back as a correction through the activation's sums.
"""

from __future__ import annotations

from numba import njit
from numba.extending import register_jitable

from cpu_experts.kernels.streams import (
    SCRATCH,
    STEP,
    TOKENS,
    prefetch_block,
    prefetch_first,
    split_rows,
    start_rows,
    start_streams,
    store_rows,
    take_step,
)
from cpu_experts.layout import scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import (
    atomic_load,
    atomic_store,
    load_f32,
    load_i64,
    load_u8,
    store_f32,
    store_i8,
)
from cpu_experts.row_vectors import subtract_product, subtract_words, widen_words
from cpu_experts.vectors import (
    add_floats,
    add_words,
    choose_lanes,
    dot_bytes,
    dot_words,
    fma,
    lanes_constant,
    load,
    load256,
    load_floats,
    load_floats256,
    multiply,
    multiply256,
    multiply_add16,
    splat_float,
    splat_float256,
    spread_floats,
    store,
    store_floats,
    sum_floats,
    to_floats,
    to_floats256,
    widen_floats,
    words_to_floats,
    zero,
    zero_floats,
)

_SIXTEENTHS0, _SIXTEENTHS1, _SIXTEENTHS2, _SIXTEENTHS3 = (
    lanes_constant([4 * i + lane // 4 for lane in range(16)]) for i in range(4)
)
_FIRST, _SECOND, _THIRD, _FOURTH = (spread_floats([2 * i] * 8 + [2 * i + 1] * 8) for i in range(4))


@njit
def _clear_sums(n, sums):
    for t in range(n):
        store_floats(zero_floats(), sums + 64 * t)


@njit
def _add_to_sum(place, value):
    store_floats(add_floats(load_floats(place), value), place)


@njit
def _store_sums(n, sums, out, out_stride):
    for t in range(n):
        store_f32(out + t * out_stride, sum_floats(load_floats(sums + 64 * t)))


@njit
def _unknown_place(tmp):
    """An address in scratch that LLVM cannot follow.

    What it loads from there is no constant to it. It would join a shuffle by a constant with the
    shuffle before it, into VPERMT2B or VPERMT2W: three times as long as VPSHUFB or VPERMD.
    """
    atomic_store(tmp, tmp + SCRATCH)
    return atomic_load(tmp)


@register_jitable
def store_orders(orders):
    """The lane orders that `spread_scales` uses: a scale for each 4 lanes."""
    store(_SIXTEENTHS0(), orders)
    store(_SIXTEENTHS1(), orders + 64)
    store(_SIXTEENTHS2(), orders + 128)
    store(_SIXTEENTHS3(), orders + 192)


@register_jitable
def spread_scales(scales, orders):
    """16 scales, one per lane, as the four vectors that meet the dot products."""
    return (
        choose_lanes(scales, load(orders)),
        choose_lanes(scales, load(orders + 64)),
        choose_lanes(scales, load(orders + 128)),
        choose_lanes(scales, load(orders + 192)),
    )


@register_jitable
def _dot_products(unpacked, q):
    """The dot products of four registers, times the scales of their sub-blocks: 16 sums."""
    u0, u1, u2, u3, s0, s1, s2, s3 = unpacked[:8]
    even = dot_words(zero(), dot_bytes(zero(), u0, load(q)), s0)
    odd = dot_words(zero(), dot_bytes(zero(), u1, load(q + 64)), s1)
    even = dot_words(even, dot_bytes(zero(), u2, load(q + 128)), s2)
    odd = dot_words(odd, dot_bytes(zero(), u3, load(q + 192)), s3)
    return add_words(even, odd)


@register_jitable
def dot_minima(unpacked, act, b, scales, sums16, total):
    """Add a superblock with minima against superblock b of one activation to 16 partial sums."""
    minima, d, d_minima = unpacked[8:]
    products = multiply(to_floats(_dot_products(unpacked, act + 256 * b)), d)
    back = to_floats256(multiply_add16(minima, load256(act + sums16 + 32 * b)))
    both = subtract_product(widen_floats(back), d_minima, products)
    return fma(both, splat_float(load_f32(act + scales + 4 * b)), total)


@register_jitable
def dot_offsets(unpacked, act, b, scales, sums16, total):
    """The same for a superblock whose unsigned weights are too big by `offsets` in all."""
    offsets, d = unpacked[8:]
    back = multiply_add16(offsets, load256(act + sums16 + 32 * b))
    sums = subtract_words(_dot_products(unpacked, act + 256 * b), widen_words(back))
    return fma(multiply(to_floats(sums), d), splat_float(load_f32(act + scales + 4 * b)), total)


@njit(error_model="numpy")
def rows_integer(
    prepare,
    unpack,
    dot,
    n_bytes,
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
    """Superblocks whose scales are integers: the sub-block scales are applied in integers too.

    unpack -> four vectors of bytes, four of scales (an int16 in each 32-bit lane: 4 products fit
    int16, so VPDPWSSD multiplies and adds them in one step), sixteen int16 corrections for the sums
    of 16, and the float factor: that of both (dot = dot_offsets), or one of each (dot_minima), in
    all lanes.
    """
    start = w + row0 * stride
    end = start + n_rows * stride
    prefetch_first(start, end)
    orders = _unknown_place(tmp)
    prepare(orders)
    scales, sums16, blocks = scales_offset(cols), sums16_offset(cols, 256), cols // 256
    if n_tokens == 1:
        act, (streams, part) = load_i64(acts), split_rows(n_rows)
        start_streams(start, stride, n_rows, end)
        for r in range(part):
            start_rows(r, start, stride, n_rows, tmp)
            for first in range(0, blocks, STEP):
                last = min(first + STEP, blocks)
                for i in range(streams):
                    block = take_step(i, STEP * n_bytes, tmp)
                    prefetch_block(block, STEP * n_bytes, end)
                    total = load_floats(tmp + 64 * i)
                    for b in range(first, last):
                        total = dot(unpack(block, orders), act, b, scales, sums16, total)
                        block += n_bytes
                    store_floats(total, tmp + 64 * i)
            store_rows(r, n_rows, tmp, out)
        return
    for first in range(0, n_tokens, TOKENS):
        n = min(TOKENS, n_tokens - first)
        for r in range(n_rows):
            source = start + r * stride
            _clear_sums(n, tmp)
            for b in range(blocks):
                block = source + b * n_bytes
                prefetch_block(block, n_bytes, end)
                unpacked = unpack(block, orders)
                for t in range(n):
                    act = load_i64(acts + 8 * (first + t))
                    total = dot(unpacked, act, b, scales, sums16, load_floats(tmp + 64 * t))
                    store_floats(total, tmp + 64 * t)
            _store_sums(n, tmp, out + first * out_stride + 4 * r, out_stride)


@njit(error_model="numpy")
def _dot_scaled(unpacked, act, g, scales, sums32, narrow):
    """256 weights with a float scale per 32 against group g of one activation: 16 partial sums."""
    u0, u1, u2, u3, d, correction = unpacked
    q = act + 256 * g
    if narrow:
        scale = load_floats256(act + scales + 32 * g)
    else:
        scale = splat_float256(load_f32(act + scales + 4 * g))
    factor = multiply256(d, scale)
    sums = words_to_floats(act + sums32 + 16 * g)
    even = widen_floats(multiply256(multiply256(correction, scale), sums))
    even = fma(to_floats(dot_bytes(zero(), u0, load(q))), _FIRST(factor), even)
    odd = multiply(to_floats(dot_bytes(zero(), u1, load(q + 64))), _SECOND(factor))
    even = fma(to_floats(dot_bytes(zero(), u2, load(q + 128))), _THIRD(factor), even)
    odd = fma(to_floats(dot_bytes(zero(), u3, load(q + 192))), _FOURTH(factor), odd)
    return add_floats(even, odd)


@njit(error_model="numpy")
def _whole_group(place, group, end, rest, tail):
    """The group at `place`, or a copy with zeros where memory may end behind its `rest` bytes."""
    if place + group <= end:
        return place
    for i in range(rest):
        store_i8(tail + i, load_u8(place + i))
    for i in range(rest, group):
        store_i8(tail + i, 0)
    return tail


@njit(error_model="numpy")
def rows_scaled(
    unpack, block, n_bytes, w, stride, row0, n_rows, cols, acts, n_tokens, out, out_stride, tmp
):
    """256 weights at a time with a float scale per 32; `block` values share an activation scale.

    unpack -> four vectors of bytes, eight float scales, and eight float corrections: what the sum
    of a sub-block's activations is multiplied with. Rows of 32-value blocks may end in a part of a
    group: what follows them, the next row, meets activations and activation scales of zero.
    """
    start = w + row0 * stride
    end = start + n_rows * stride
    prefetch_first(start, end)
    narrow = block == 32
    group = n_bytes * 8 if narrow else n_bytes
    scales, sums32 = scales_offset(cols), sums32_offset(cols, block)
    whole, rest = cols // 256, cols % 256 // 32 * n_bytes
    tail = tmp + SCRATCH
    if n_tokens == 1:
        act, (streams, part) = load_i64(acts), split_rows(n_rows)
        start_streams(start, stride, n_rows, end)
        for r in range(part):
            start_rows(r, start, stride, n_rows, tmp)
            for first in range(0, whole, STEP):
                last = min(first + STEP, whole)
                for i in range(streams):
                    place = take_step(i, (last - first) * group, tmp)
                    prefetch_block(place, STEP * group, end)
                    total = load_floats(tmp + 64 * i)
                    for g in range(first, last):
                        total = add_floats(
                            total, _dot_scaled(unpack(place), act, g, scales, sums32, narrow)
                        )
                        place += group
                    store_floats(total, tmp + 64 * i)
            if rest > 0:
                for i in range(streams):
                    place = _whole_group(take_step(i, 0, tmp), group, end, rest, tail)
                    part_sum = _dot_scaled(unpack(place), act, whole, scales, sums32, narrow)
                    _add_to_sum(tmp + 64 * i, part_sum)
            store_rows(r, n_rows, tmp, out)
        return
    for first in range(0, n_tokens, TOKENS):
        n = min(TOKENS, n_tokens - first)
        for r in range(n_rows):
            source = start + r * stride
            _clear_sums(n, tmp)
            for g in range(whole + (rest > 0)):
                place = source + g * group
                prefetch_block(place, group, end)
                unpacked = unpack(_whole_group(place, group, end, rest, tail))
                for t in range(n):
                    act = load_i64(acts + 8 * (first + t))
                    part_sum = _dot_scaled(unpacked, act, g, scales, sums32, narrow)
                    _add_to_sum(tmp + 64 * t, part_sum)
            _store_sums(n, tmp, out + first * out_stride + 4 * r, out_stride)
