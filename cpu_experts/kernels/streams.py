"""How few tokens read a run of rows: as streams, with prefetches.

A core keeps more lines on their way from several places than from one, so for one token a run of
rows is read as four streams, a kilobyte of each in turn. Their sums and places are in scratch.
"""

from __future__ import annotations

from numba import njit

from cpu_experts.memory import load_i64, prefetch, store_f32, store_i64
from cpu_experts.vectors import load_floats, store_floats, sum_floats, zero_floats

# Bytes between a load and its prefetch, in each stream. 1 to 2 KiB was best where it was measured;
# past a page (4.6 KB) a fifth was lost.
AHEAD = 2048
STREAMS = 4
STEP = 4  # superblocks of a stream's turn
# Scratch: a sum of 64 bytes for each stream, or for each of up to 8 tokens, then where streams are.
TOKENS = 8
_PLACES = 64 * TOKENS
SCRATCH = _PLACES + 64


@njit
def prefetch_first(start, end):
    """The lines that the loop's own prefetches come too late for."""
    for line in range(start, min(start + AHEAD, end), 64):
        prefetch(line)


@njit
def split_rows(n_rows):
    """How many streams a run of rows is read as, and the rows of each."""
    streams = min(STREAMS, n_rows)
    return streams, (n_rows + streams - 1) // streams


@njit
def _first_row(stream, part, n_rows):
    """Where a stream begins. Its last rows may be the first of the next one: they are met twice."""
    return min(stream * part, n_rows - part)


@njit
def start_streams(start, stride, n_rows, end):
    """Ask for the first lines of all streams but the first, which has been done."""
    streams, part = split_rows(n_rows)
    for i in range(1, streams):
        prefetch_first(start + _first_row(i, part, n_rows) * stride, end)


@njit
def start_rows(r, start, stride, n_rows, tmp):
    """Row `r` of each stream: its sum and its place."""
    streams, part = split_rows(n_rows)
    for i in range(streams):
        store_floats(zero_floats(), tmp + 64 * i)
        row = _first_row(i, part, n_rows) + r
        store_i64(tmp + _PLACES + 8 * i, start + row * stride)


@njit
def take_step(stream, n_bytes, tmp):
    """Where a stream is; it moves on by `n_bytes`."""
    place = load_i64(tmp + _PLACES + 8 * stream)
    store_i64(tmp + _PLACES + 8 * stream, place + n_bytes)
    return place


@njit
def store_rows(r, n_rows, tmp, out):
    """The sum of row `r` of each stream."""
    streams, part = split_rows(n_rows)
    for i in range(streams):
        row = _first_row(i, part, n_rows) + r
        store_f32(out + 4 * row, sum_floats(load_floats(tmp + 64 * i)))


@njit
def prefetch_block(block, n_bytes, end):
    """A block's worth of lines, AHEAD of it; past `end` lies what another thread may be reading."""
    place = min(block + AHEAD, end)
    for line in range((n_bytes + 63) // 64):
        prefetch(place + 64 * line)
