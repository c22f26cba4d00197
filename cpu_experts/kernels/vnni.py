"""The avx512_vnni tier for few tokens of superblocks with integer scales: rows as fast as their
bytes arrive.

Weights become four registers of unsigned bytes, products of those with int8 activations integers,
and only a superblock's sums float32. What each register holds is where the file has it: to load 32
bytes twice, for low and high nibbles, is a shuffle on a Zen 4, whose pipes for those are full. So
activations are packed in the order that a format's weights come in, once per call, with what stands
for their sums: those take back minima, and offsets of signed weights.

A weight meets one token, or the two terms of one, when it is unpacked; another token has it
unpacked again.
"""

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
from cpu_experts.layout import scales_offset, sums16_offset
from cpu_experts.memory import atomic_load, atomic_store, load_f32, store_f32
from cpu_experts.row_vectors import (
    even_quarters,
    odd_quarters,
    pack_words,
    store_factors,
)
from cpu_experts.vectors import (
    dot_bytes,
    dot_words,
    load,
    load_floats,
    load_halves,
    store,
    store_floats,
    sum_floats,
    zero,
    zero_floats,
)

# From the unknown place on: lane orders, factors of a superblock, what is packed of activations.
_FACTORS, _ALL_PACKED = 192, 256
# Of a superblock: where its scale is, behind the sums, then its activations, and bytes.
_SCALE, _ACTS, _PACKED = 32, 64, 320


@inner
def unknown_place(tmp):
    """An address in scratch that LLVM cannot follow.

    What it loads from there is no constant to it. It would join a shuffle by a constant with the
    shuffle before it, into VPERMT2B or VPERMT2W: three times as long as VPSHUFB or VPERMD.
    """
    atomic_store(tmp, tmp + SCRATCH)
    return atomic_load(tmp)


@inner
def pack_thirty_twos(values, packed, step):
    """A superblock's activations, 32 of them and the 32 that are `step` bytes behind in turn."""
    for i in range(0, 128, 32):
        first = values + i // step * 2 * step + i % step
        store(load_halves(first, first + step), packed + _ACTS + 2 * i)


@inner
def pack_sixteens(values, packed):
    """Every other 16 of 128 activations, then the ones between them."""
    for i in range(0, 256, 128):
        x, y = load(values + i), load(values + i + 64)
        store(even_quarters(x, y), packed + _ACTS + i)
        store(odd_quarters(x, y), packed + _ACTS + i + 64)


@inner
def dot_bytes_of(unpacked, start, packed):
    """`start` plus the products of four vectors of weights with 256 packed activations."""
    total = dot_bytes(start, unpacked[0], load(packed + _ACTS))
    total = dot_bytes(total, unpacked[1], load(packed + _ACTS + 64))
    total = dot_bytes(total, unpacked[2], load(packed + _ACTS + 128))
    return dot_bytes(total, unpacked[3], load(packed + _ACTS + 192))


@inner
def dot_bytes_in_pairs(unpacked, packed):
    """The same of the first two vectors, and of the other two."""
    first = dot_bytes(zero(), unpacked[0], load(packed + _ACTS))
    second = dot_bytes(zero(), unpacked[2], load(packed + _ACTS + 128))
    first = dot_bytes(first, unpacked[1], load(packed + _ACTS + 64))
    return first, dot_bytes(second, unpacked[3], load(packed + _ACTS + 192))


@inner
def dot_scaled(unpacked, packed):
    """The same, times scales. Sums of four products fit int16: two vectors of them become one of
    words, which VPDPWSSD multiplies by the scales, and adds, in one step.
    """
    u0, u1, u2, u3, s01, s23 = unpacked[:6]
    w0 = dot_bytes(zero(), u0, load(packed + _ACTS))
    w1 = dot_bytes(zero(), u1, load(packed + _ACTS + 64))
    w2 = dot_bytes(zero(), u2, load(packed + _ACTS + 128))
    w3 = dot_bytes(zero(), u3, load(packed + _ACTS + 192))
    return dot_words(dot_words(zero(), pack_words(w0, w1), s01), pack_words(w2, w3), s23)


@inner
def _pack(pack, act, cols, packed):
    """For each superblock of an activation: its values and sums by `pack`, and its scale."""
    source, scales = act + sums16_offset(cols, 256), act + scales_offset(cols)
    for b in range(cols // 256):
        target = packed + _PACKED * b
        pack(act + 256 * b, source + 32 * b, target)
        store_f32(target + _SCALE, load_f32(scales + 4 * b))


@inner(forceinline=True)
def _rows(
    unpack,
    dot,
    n_bytes,
    heads,
    high,
    packed,
    start,
    stride,
    n_rows,
    cols,
    orders,
    again,
    out,
    tmp,
):
    """One activation, or with `high` not 0 the second term of one, whose first is packed behind."""
    blocks, step = cols // 256, 2 * STEP if n_bytes < 128 else STEP
    end, (streams, length) = start + n_rows * stride, split_rows(n_rows)
    start_streams(start, stride, n_rows, end)
    for r in range(length):
        for first in range(0, blocks, step):
            last = min(first + step, blocks)
            for i in range(streams):
                row = first_row(i, length, n_rows) + r
                block = start + row * stride + first * n_bytes
                prefetch_block(block, step * n_bytes, end)
                total = zero_floats() if first == 0 else load_floats(tmp + 64 * i)
                for b in range(first, last):
                    unpacked, here = unpack(block, orders), packed + _PACKED * b
                    store_factors(block + heads, here + _SCALE, orders + _FACTORS)
                    total = dot(unpacked, here, again + _FACTORS, total)
                    if high != 0:
                        here += _PACKED * blocks
                        store_factors(block + heads, here + _SCALE, orders + _FACTORS)
                        total = dot(unpacked, here, again + _FACTORS, total)
                    block += n_bytes
                if last == blocks:
                    store_f32(out + 4 * row, sum_floats(total))
                else:
                    store_floats(total, tmp + 64 * i)


@inner(inline="always")
def rows_integer(
    prepare,
    pack,
    unpack,
    dot,
    n_bytes,
    heads,
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
    """out[t, r] = row r . activation t. A format brings:

    prepare(orders): store the lane orders that `unpack(block, orders)` loads, at most 192 bytes.
    `unpack` gives four vectors of bytes and what `dot` wants besides. pack(values, sums16, packed):
    write 32 bytes for a superblock's sums of 16, and its values in the order of the weights
    (`pack_thirty_twos`, `pack_sixteens`). dot(unpacked, packed, factors, total) adds the superblock
    to 16 partial sums; factors are the four float16 at byte `heads` of the block, times the
    activation's scale, as float32.
    """
    orders, again = unknown_place(tmp), unknown_place(tmp)
    prepare(orders)
    terms, packed = terms_of(n_tokens, out_stride), tmp + SCRATCH + _ALL_PACKED
    together = rows_at_once(n_rows, n_tokens, terms)
    for first in range(0, n_rows, together):
        start = w + (row0 + first) * stride
        n = min(together, n_rows - first)
        prefetch_first(start, start + n * stride)
        for t in range(0, n_tokens, terms):
            act, high = token_terms(acts, t, terms)
            _pack(pack, act, cols, packed)
            if high != 0:
                _pack(pack, high, cols, packed + cols // 256 * _PACKED)
            place = out + t * out_stride + 4 * first
            _rows(
                unpack, dot, n_bytes, heads, high, packed, start, stride, n, cols, orders, again,
                place, tmp,
            )  # fmt: skip
