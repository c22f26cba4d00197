"""The avx512_vnni tier for few tokens of formats whose weights times integer scales are bytes.

Q2_K and Q3_K have few values and a scale for every 16: applying scales to sums of products, as
vnni.py does, is half of the work. Here all that a sub-block's values can be, times its scale, are
the bytes of a table in a register. VPSHUFB looks the weights up, and a superblock is four VPDPBUSD
into one register. A table serves the sub-blocks that have the same place in four vectors: its index
is a value and the number of the vector.

Four vectors of weights come out of the same 64 bytes, each of 32 values of either half of the
superblock. Activations are packed in that order, so that no load need repeat 32 bytes: on a Zen 4
that is a shuffle, which bound it.
"""

from __future__ import annotations

from cpu_experts.cache import inner
from cpu_experts.kernels.streams import (
    SCRATCH,
    first_row,
    prefetch_block,
    prefetch_first,
    rows_at_once,
    split_rows,
    start_streams,
    terms_of,
    token_terms,
)
from cpu_experts.kernels.vnni import unknown_place
from cpu_experts.layout import scales_offset, sums16_offset
from cpu_experts.memory import load_f32, store_f32
from cpu_experts.row_vectors import (
    shift_words_left8,
    shift_words_left8_256,
    store_factors,
    zero256,
)
from cpu_experts.vectors import (
    dot_bytes,
    load,
    load_floats,
    load_halves,
    store,
    store_floats,
    sum_floats,
    zero,
    zero_floats,
)

_STEP = 8  # superblocks of a stream's turn: they are short
# From the unknown place on: lane orders, factors of a superblock, what is packed of activations.
_FACTORS, _ALL_PACKED = 64, 128
# Of a superblock: where its scale is, behind the sums, then its activations, and bytes.
_SCALE, _ACTS, _PACKED = 32, 64, 320


@inner
def dot_bytes_of(unpacked, start, packed):
    """`start` plus the products of four vectors of weights with 256 packed activations."""
    total = dot_bytes(start, unpacked[0], load(packed + _ACTS))
    total = dot_bytes(total, unpacked[1], load(packed + _ACTS + 64))
    total = dot_bytes(total, unpacked[2], load(packed + _ACTS + 128))
    return dot_bytes(total, unpacked[3], load(packed + _ACTS + 192))


@inner
def _pack(make, act, cols, packed):
    """For each superblock of an activation: what `make` makes of its sums of 16, its scale, and its
    values, 32 of either half in turn.
    """
    source, scales = act + sums16_offset(cols, 256), act + scales_offset(cols)
    for b in range(cols // 256):
        values, target = act + 256 * b, packed + _PACKED * b
        make(source + 32 * b, target)
        store_f32(target + _SCALE, load_f32(scales + 4 * b))
        for i in range(0, 128, 32):
            store(load_halves(values + i, values + 128 + i), target + _ACTS + 2 * i)


@inner(forceinline=True)
def _rows(
    unpack,
    add,
    finish,
    n_bytes,
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
    blocks = cols // 256
    end, (streams, length) = start + n_rows * stride, split_rows(n_rows)
    start_streams(start, stride, n_rows, end)
    for r in range(length):
        for first in range(0, blocks, _STEP):
            last = min(first + _STEP, blocks)
            for i in range(streams):
                row = first_row(i, length, n_rows) + r
                block = start + row * stride + first * n_bytes
                prefetch_block(block, _STEP * n_bytes, end)
                total = zero_floats() if first == 0 else load_floats(tmp + 64 * i)
                for b in range(first, last):
                    unpacked = unpack(block, orders)
                    here = packed + _PACKED * b
                    store_factors(block + n_bytes - 8, here + _SCALE, orders + _FACTORS)
                    x, y = zero(), zero256()
                    if high != 0:
                        x, y = add(unpacked, x, y, here + _PACKED * blocks)
                        x, y = shift_words_left8(x), shift_words_left8_256(y)
                    x, y = add(unpacked, x, y, here)
                    total = finish(x, y, again + _FACTORS, total)
                    block += n_bytes
                if last == blocks:
                    store_f32(out + 4 * row, sum_floats(total))
                else:
                    store_floats(total, tmp + 64 * i)


@inner(inline="always")
def rows_folded(
    prepare,
    make,
    unpack,
    add,
    finish,
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
    """out[t, r] = row r . activation t. A format brings:

    prepare(orders): store the lane orders that `unpack(block, orders)` loads, 64 bytes. `unpack`
    gives four vectors of bytes, scales applied, and what `add` wants besides: vector i holds
    weights 32 i to 32 i + 31 and 128 behind those. make(sums16, out): the 32 bytes that stand for a
    superblock's sums of 16, of the packed ones the first. add(unpacked, x, y, packed) adds the
    superblock to 16 and to 8 integer sums; finish(x, y, factors, total) adds those to `total`,
    times factors: the block's last four float16 times the activation's scale, as float32.
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
            _pack(make, act, cols, packed)
            if high != 0:
                _pack(make, high, cols, packed + cols // 256 * _PACKED)
            place = out + t * out_stride + 4 * first
            _rows(
                unpack, add, finish, n_bytes, high, packed, start, stride, n, cols, orders,
                again, place, tmp,
            )  # fmt: skip
