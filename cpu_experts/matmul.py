"""Products with quantised matrices: plain, per head of a stack, and per head transposed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from cpu_experts.activations import Activations, as_rows
from cpu_experts.cache import c_function, entry, inner
from cpu_experts.cpu import tier
from cpu_experts.formats import FLOAT
from cpu_experts.kernels.registry import DEQUANT, kernel_address
from cpu_experts.layout import row_stride
from cpu_experts.memory import call_kernel, load_f32, load_i64, store_f32, store_i64
from cpu_experts.pool import ITEM, pool_address, run_job, thread_count
from cpu_experts.quantise import prepare
from cpu_experts.tensor import (
    AUX,
    BASES,
    COLS,
    COUNT,
    KIND,
    N_ROWS,
    ROWS_KERNEL,
    STRIDE,
    TILES_KERNEL,
    QuantTensor,
)
from cpu_experts.workspace import WORKSPACE

FEW_TOKENS = 2  # up to here the `rows` kernels are used, above it the `tiles` kernels
_MANY_TOKENS = 32  # from here on an item has up to 256 rows: it packs all activations' sums again
_TINY = 1 << 20  # weights x tokens below which waking the pool costs more than it saves
# Fields of a job, int64 each, in the workspace.
_WEIGHT, _TABLE, _TOKENS, _OUT, _OUT_STRIDE, _ROWS_PER_ITEM, _EXTRA = range(7)
JOB_BYTES = 64


@inner
def kernel_for(weight, n_tokens):
    """The address of the kernel that suits this number of tokens."""
    return load_i64(weight + 8 * (ROWS_KERNEL if n_tokens <= FEW_TOKENS else TILES_KERNEL))


def _product_item(job, item, slot, scratch):
    """One run of rows of one matrix against all tokens."""
    weight, table = load_i64(job + 8 * _WEIGHT), load_i64(job + 8 * _TABLE)
    n_tokens, out = load_i64(job + 8 * _TOKENS), load_i64(job + 8 * _OUT)
    step = load_i64(job + 8 * _ROWS_PER_ITEM)
    rows = load_i64(weight + 8 * N_ROWS)
    runs = (rows + step - 1) // step
    matrix, row = item // runs, item % runs * step
    call_kernel(
        kernel_for(weight, n_tokens),
        (
            load_i64(load_i64(weight + 8 * BASES) + 8 * matrix),
            load_i64(weight + 8 * STRIDE),
            row,
            min(step, rows - row),
            load_i64(weight + 8 * COLS),
            load_i64(load_i64(weight + 8 * AUX) + 8 * matrix),
            table + 8 * matrix * n_tokens,
            n_tokens,
            out + 4 * (matrix * rows + row),
            load_i64(job + 8 * _OUT_STRIDE),
            scratch,
        ),
    )


@inner
def rows_per_item(rows, row_bytes, threads):
    """Rows of one item: a multiple of 32, at least 32 KiB, and some 8 items for each thread."""
    step = max(rows // (8 * threads), 32768 // row_bytes)
    return max(32, (step + 31) // 32 * 32)


def _product(x, out, weight, table, n_tokens, terms, work, scratch, pool, item_code):
    """x [n_tokens, n, cols] times the n matrices of `weight`; `table` 0: quantise x first.

    With two `terms` a token is two rows to the kernels, whose products are added at the end, or by
    the kernel if there is no other token.
    """
    count, rows = load_i64(weight + 8 * COUNT), load_i64(weight + 8 * N_ROWS)
    cols, kind = load_i64(weight + 8 * COLS), load_i64(weight + 8 * KIND)
    source, target = np.int64(x.ctypes.data), np.int64(out.ctypes.data)
    apart = terms == 2 and n_tokens > 1
    if apart:
        target = work + JOB_BYTES
        work_end = target + (8 * n_tokens * rows * count + 63) // 64 * 64
    else:
        work_end = work + JOB_BYTES
    if table == 0:
        table = work_end
        quantised = table + (8 * n_tokens * terms * count + 127) // 64 * 64
        _prepare_heads(kind, source, n_tokens, terms, count, cols, quantised, table)
    n_tokens *= terms
    if rows * cols * count * n_tokens < _TINY:
        pool = 0
    threads = thread_count(pool)
    step = rows_per_item(rows, load_i64(weight + 8 * STRIDE), threads)
    if n_tokens >= _MANY_TOKENS:
        step = max(step, min(256, rows // (2 * threads) // 32 * 32))
    store_i64(work + 8 * _WEIGHT, weight)
    store_i64(work + 8 * _TABLE, table)
    store_i64(work + 8 * _TOKENS, n_tokens)
    store_i64(work + 8 * _OUT, target)
    store_i64(work + 8 * _OUT_STRIDE, 4 * rows * count if apart or terms == 1 else 0)
    store_i64(work + 8 * _ROWS_PER_ITEM, step)
    run_job(pool, item_code, work, count * ((rows + step - 1) // step), scratch)
    if apart:
        _add_pairs(target, n_tokens // 2, rows * count, np.int64(out.ctypes.data))


@inner
def _add_pairs(pairs, n_rows, width, out):
    """out[t] = pairs[2t] + pairs[2t + 1], rows of `width` float32."""
    for t in range(n_rows):
        first = pairs + 8 * t * width
        for i in range(width):
            value = load_f32(first + 4 * i) + load_f32(first + 4 * (width + i))
            store_f32(out + 4 * (t * width + i), value)


@inner
def _prepare_heads(kind, x, n_tokens, terms, count, cols, quantised, table):
    """Quantise x [T, n, cols] in place order; list the row addresses as [n, T, terms]."""
    stride = row_stride(kind, cols) * terms
    for t in range(n_tokens):
        for h in range(count):
            row = t * count + h
            source, listed = x + 4 * row * cols, table + 8 * terms * (h * n_tokens + t)
            # Not a literal: that would be a copy of `prepare` for it.
            one = np.int64(1)
            prepare(kind, source, one, cols, quantised + row * stride, listed, terms)


def _transposed_item(job, item, slot, scratch):
    """One matrix [rows, cols]: y[t] = sum of x[t, r] * row r, rows dequantised one by one."""
    weight, x = load_i64(job + 8 * _WEIGHT), load_i64(job + 8 * _TABLE)
    n_tokens, out = load_i64(job + 8 * _TOKENS), load_i64(job + 8 * _OUT)
    rows, cols = load_i64(weight + 8 * N_ROWS), load_i64(weight + 8 * COLS)
    count = load_i64(weight + 8 * COUNT)
    row = scratch + (1 << 16)
    for t in range(n_tokens):
        _clear(out + 4 * (t * count + item) * cols, cols)
    for r in range(rows):
        call_kernel(
            load_i64(job + 8 * _EXTRA),
            (
                load_i64(load_i64(weight + 8 * BASES) + 8 * item),
                load_i64(weight + 8 * STRIDE),
                r,
                1,
                cols,
                load_i64(load_i64(weight + 8 * AUX) + 8 * item),
                0,
                0,
                row,
                0,
                scratch,
            ),
        )
        for t in range(n_tokens):
            head = t * count + item
            _add_scaled(out + 4 * head * cols, row, load_f32(x + 4 * (head * rows + r)), cols)


@inner
def _clear(target, n):
    for i in range(n):
        store_f32(target + 4 * i, 0.0)


@inner
def _add_scaled(target, source, factor, n):
    for i in range(n):
        value = load_f32(target + 4 * i) + factor * load_f32(source + 4 * i)
        store_f32(target + 4 * i, value)


def _product_transposed(x, out, weight, n_tokens, work, scratch, pool, item_code, dequant):
    """x [n_tokens, n, rows] times the n matrices, transposed, into out [n_tokens, n, cols]."""
    count = load_i64(weight + 8 * COUNT)
    store_i64(work + 8 * _WEIGHT, weight)
    store_i64(work + 8 * _TABLE, np.int64(x.ctypes.data))
    store_i64(work + 8 * _TOKENS, n_tokens)
    store_i64(work + 8 * _OUT, np.int64(out.ctypes.data))
    store_i64(work + 8 * _EXTRA, dequant)
    run_job(pool, item_code, work, count, scratch)


_ARRAY = types.Array(types.float32, 2, "C", aligned=True)
_PRODUCT = types.void(_ARRAY, _ARRAY, *[types.int64] * 8)
_TRANSPOSED = types.void(_ARRAY, _ARRAY, *[types.int64] * 7)


@cache
def plain() -> tuple[Callable[..., None], int]:
    """The entry and the item code of `_product`, compiled."""
    return entry(_product, _PRODUCT), c_function(_product_item, ITEM)


@cache
def transposed() -> tuple[Callable[..., None], int]:
    return entry(_product_transposed, _TRANSPOSED), c_function(_transposed_item, ITEM)


def matmul(
    x: np.ndarray | Activations, w: QuantTensor, out: np.ndarray | None = None, terms: int = 1
) -> np.ndarray:
    """x [T, cols] times one matrix (rows, cols), transposed: float32 [T, rows].

    Quantised weights meet int8 activations, float weights float32 ones. With two `terms` the int8
    row is joined by a second one, of what its rounding left: about 15 bits, at twice the dot
    products but the same reading of weights. Pass an `Activations` when several matrices read the
    same x. `out`: float32 [T, rows], C-contiguous. ValueError on shapes.
    """
    if w.count != 1:
        raise ValueError(f"matmul needs one matrix, not {w}; see matmul_stack")
    table, terms = 0, _terms(w, terms)
    if isinstance(x, Activations):
        if x.shape[1] != w.cols:
            raise ValueError(f"the input has {x.shape[1]} columns; {w} reads {w.cols}")
        table, rows = x.table(w.format.activation, terms), x.x
    else:
        rows = as_rows(x, w.cols)
    n_tokens = len(rows)
    if out is None:
        out = np.empty((n_tokens, w.rows), dtype=np.float32)
    else:
        check_out(out, (n_tokens, w.rows))
    _run(rows, out, w, table, n_tokens, terms)
    return out


def _terms(w: QuantTensor, terms: int) -> int:
    """Float activations are whole: one term."""
    return 1 if w.format.activation == FLOAT else terms


def check_out(out: np.ndarray, shape: tuple[int, ...]) -> None:
    """ValueError unless `out` can be written as a C-contiguous float32 array of `shape`."""
    if out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(f"out must be a writeable C-contiguous float32 array of shape {shape}")


def _run(
    x: np.ndarray, out: np.ndarray, w: QuantTensor, table: int, n_tokens: int, terms: int
) -> None:
    if n_tokens == 0:
        return
    n_rows = n_tokens * w.count * terms
    size = JOB_BYTES + 256
    if table == 0:
        size += n_rows * (w.activation_stride + 16)
    if terms == 2:
        size += 4 * n_rows * w.rows
    work = WORKSPACE.at_least(size)
    product, item_code = plain()
    pool = pool_address()
    product(x, out, w.address, table, n_tokens, terms, work, WORKSPACE.scratch, pool, item_code)


def _heads(x: np.ndarray, count: int, width: int) -> np.ndarray:
    """x [T, count, width] as [T, count * width]; ValueError on another shape."""
    if x.ndim != 3 or x.shape[1:] != (count, width):
        raise ValueError(f"the input has shape {x.shape}; this stack reads [T, {count}, {width}]")
    return as_rows(x.reshape(len(x), count * width), count * width)


def matmul_stack(x: np.ndarray, w: QuantTensor, terms: int = 1) -> np.ndarray:
    """Head h of x meets matrix h: x [T, n, cols], w (n, rows, cols) -> float32 [T, n, rows].

    `terms` as in matmul.
    """
    rows = _heads(x, w.count, w.cols)
    out = np.empty((len(x), w.count * w.rows), dtype=np.float32)
    _run(rows, out, w, 0, len(x), _terms(w, terms))
    return out.reshape(len(x), w.count, w.rows)


def matmul_stack_t(x: np.ndarray, w: QuantTensor) -> np.ndarray:
    """y[:, h] = x[:, h] @ w[h]: x [T, n, rows], w (n, rows, cols) -> float32 [T, n, cols].

    Weights are dequantised row by row, a row at a time, and the products are float32.
    """
    rows = _heads(x, w.count, w.rows)
    out = np.empty((len(x), w.count * w.cols), dtype=np.float32)
    if len(x):
        work = WORKSPACE.at_least(JOB_BYTES)
        product, item_code = transposed()
        dequant = kernel_address(w.format, DEQUANT, tier())
        pool = pool_address()
        product(rows, out, w.address, len(x), work, WORKSPACE.scratch, pool, item_code, dequant)
    return out.reshape(len(x), w.count, w.cols)
