"""How few tokens read a run of rows: as streams, with prefetches.

A core keeps more lines on their way from several places than from one, so for one token a run of
rows is read as four streams, a kilobyte of each in turn. Sums of rows longer than that wait in
scratch.
"""

from __future__ import annotations

from numba import njit

from cpu_experts.memory import prefetch

# Bytes between a load and its prefetch, in each stream. 1 to 2 KiB was best where it was measured;
# past a page (4.6 KB) a fifth was lost.
AHEAD = 2048
STREAMS = 4
STEP = 4  # superblocks of a stream's turn
# Scratch: a sum of 64 bytes for each stream, or for each of up to 8 tokens.
TOKENS = 8
SCRATCH = 64 * TOKENS


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
def first_row(stream, part, n_rows):
    """Where a stream begins. Its last rows may be the first of the next one: they are met twice."""
    return min(stream * part, n_rows - part)


@njit
def start_streams(start, stride, n_rows, end):
    """Ask for the first lines of all streams but the first, which has been done."""
    streams, part = split_rows(n_rows)
    for i in range(1, streams):
        prefetch_first(start + first_row(i, part, n_rows) * stride, end)


@njit
def prefetch_block(block, n_bytes, end):
    """A block's worth of lines, AHEAD of it; past `end` lies what another thread may be reading."""
    place = min(block + AHEAD, end)
    for line in range((n_bytes + 63) // 64):
        prefetch(place + 64 * line)
