"""F16: IEEE half weights, widened to float32; activations stay float32."""

from __future__ import annotations

from cpu_experts.cache import jitable
from cpu_experts.kernels.floats import rows_widened
from cpu_experts.kernels.portable import rows_float
from cpu_experts.memory import load_f16, store_f32
from cpu_experts.vectors import widen_f16


@jitable
def unpack(w, stride, row, start, n, cols, aux, target):
    """Columns `start` to `start + n` of a row as float32 at `target`."""
    source = w + row * stride + 2 * start
    for i in range(n):
        store_f32(target + 4 * i, load_f16(source + 2 * i))


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    for r in range(n_rows):
        unpack(w, stride, row0 + r, 0, cols, cols, aux, out + r * out_stride)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_float(unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch)


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_widened(
        widen_f16,
        unpack,
        2,
        w,
        stride,
        row0,
        n_rows,
        cols,
        aux,
        acts,
        n_tokens,
        out,
        out_stride,
        scratch,
    )
