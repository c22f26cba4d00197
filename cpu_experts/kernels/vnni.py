"""The avx512_vnni tier for few tokens: rows as fast as their bytes arrive.

A format brings `unpack_vectors(block)`. It gives the 256 weights of a superblock as four registers
of unsigned bytes, in the order of the activations, and what turns dot products of those bytes into
the result. Weights meet one token, or the two terms of one, when they are unpacked; another token
has them unpacked again. Signed weights are offset to unsigned ones (VPDPBUSD wants that); the
offset comes back as a correction through the activation's sums.
"""

from __future__ import annotations

from cpu_experts.cache import inner, jitable
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
from cpu_experts.layout import scales_offset, sums16_offset
from cpu_experts.memory import atomic_load, atomic_store, load_f32, store_f32
from cpu_experts.row_vectors import subtract_product, subtract_words, widen_words
from cpu_experts.vectors import (
    add_words,
    choose_lanes,
    dot_bytes,
    dot_words,
    fma,
    lanes_constant,
    load,
    load256,
    load_floats,
    multiply,
    multiply_add16,
    splat_float,
    store,
    store_floats,
    sum_floats,
    to_floats,
    to_floats256,
    widen_floats,
    zero,
    zero_floats,
)

_SIXTEENTHS0, _SIXTEENTHS1, _SIXTEENTHS2, _SIXTEENTHS3 = (
    lanes_constant([4 * i + lane // 4 for lane in range(16)]) for i in range(4)
)


@inner
def unknown_place(tmp):
    """An address in scratch that LLVM cannot follow.

    What it loads from there is no constant to it. It would join a shuffle by a constant with the
    shuffle before it, into VPERMT2B or VPERMT2W: three times as long as VPSHUFB or VPERMD.
    """
    atomic_store(tmp, tmp + SCRATCH)
    return atomic_load(tmp)


@jitable
def store_orders(orders):
    """The lane orders that `spread_scales` uses: a scale for each 4 lanes."""
    store(_SIXTEENTHS0(), orders)
    store(_SIXTEENTHS1(), orders + 64)
    store(_SIXTEENTHS2(), orders + 128)
    store(_SIXTEENTHS3(), orders + 192)


@jitable
def spread_scales(scales, orders):
    """16 scales, one per lane, as the four vectors that meet the dot products."""
    return (
        choose_lanes(scales, load(orders)),
        choose_lanes(scales, load(orders + 64)),
        choose_lanes(scales, load(orders + 128)),
        choose_lanes(scales, load(orders + 192)),
    )


@jitable
def _dot_products(unpacked, q):
    """The dot products of four registers, times the scales of their sub-blocks: 16 sums."""
    u0, u1, u2, u3, s0, s1, s2, s3 = unpacked[:8]
    even = dot_words(zero(), dot_bytes(zero(), u0, load(q)), s0)
    odd = dot_words(zero(), dot_bytes(zero(), u1, load(q + 64)), s1)
    even = dot_words(even, dot_bytes(zero(), u2, load(q + 128)), s2)
    odd = dot_words(odd, dot_bytes(zero(), u3, load(q + 192)), s3)
    return add_words(even, odd)


@jitable
def dot_minima(unpacked, act, b, scales, sums16, total):
    """Add a superblock with minima against superblock b of one activation to 16 partial sums."""
    minima, d, d_minima = unpacked[8:]
    products = multiply(to_floats(_dot_products(unpacked, act + 256 * b)), d)
    back = to_floats256(multiply_add16(minima, load256(act + sums16 + 32 * b)))
    both = subtract_product(widen_floats(back), d_minima, products)
    return fma(both, splat_float(load_f32(act + scales + 4 * b)), total)


@jitable
def dot_offsets(unpacked, act, b, scales, sums16, total):
    """The same for a superblock whose unsigned weights are too big by `offsets` in all."""
    offsets, d = unpacked[8:]
    back = multiply_add16(offsets, load256(act + sums16 + 32 * b))
    sums = subtract_words(_dot_products(unpacked, act + 256 * b), widen_words(back))
    return fma(multiply(to_floats(sums), d), splat_float(load_f32(act + scales + 4 * b)), total)


@inner(forceinline=True)
def _rows(unpack, dot, n_bytes, act, first_term, start, stride, n_rows, cols, orders, out, tmp):
    """One activation, or with `first_term` not 0 the second term of one."""
    scales, sums16, blocks = scales_offset(cols), sums16_offset(cols, 256), cols // 256
    end, (streams, length) = start + n_rows * stride, split_rows(n_rows)
    start_streams(start, stride, n_rows, end)
    for r in range(length):
        for first in range(0, blocks, STEP):
            last = min(first + STEP, blocks)
            for i in range(streams):
                row = first_row(i, length, n_rows) + r
                block = start + row * stride + first * n_bytes
                prefetch_block(block, STEP * n_bytes, end)
                total = zero_floats() if first == 0 else load_floats(tmp + 64 * i)
                for b in range(first, last):
                    unpacked = unpack(block, orders)
                    total = dot(unpacked, act, b, scales, sums16, total)
                    if first_term != 0:
                        total = dot(unpacked, first_term, b, scales, sums16, total)
                    block += n_bytes
                if last == blocks:
                    store_f32(out + 4 * row, sum_floats(total))
                else:
                    store_floats(total, tmp + 64 * i)


@inner(inline="always")
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
    orders = unknown_place(tmp)
    prepare(orders)
    terms = terms_of(n_tokens, out_stride)
    together = rows_at_once(n_rows, n_tokens, terms)
    for first in range(0, n_rows, together):
        start = w + (row0 + first) * stride
        n = min(together, n_rows - first)
        prefetch_first(start, start + n * stride)
        for t in range(0, n_tokens, terms):
            act, first_term = token_terms(acts, t, terms)
            place = out + t * out_stride + 4 * first
            _rows(
                unpack, dot, n_bytes, act, first_term, start, stride, n, cols, orders, place, tmp
            )  # fmt: skip
