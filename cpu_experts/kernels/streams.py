"""How few tokens read a run of rows: as streams, with prefetches.

A core keeps more lines on their way from several places than from one, so for one token a run of
rows is read as four streams, a kilobyte of each in turn. Sums of rows longer than that wait in
scratch.
"""

from __future__ import annotations

from cpu_experts.cache import inner
from cpu_experts.memory import load_i64, prefetch_stream

# Bytes between a load and its prefetch, in each stream. 1 to 2 KiB was best where it was measured;
# past a page (4.6 KB) a fifth was lost.
AHEAD = 2048
STREAMS = 4
STEP = 4  # superblocks of a stream's turn
SCRATCH = 512  # bytes: a sum of 64 for each stream, and what is after a multiple of 512
_MET_AGAIN = 32  # rows that several tokens meet one after the other, from the second cache


@inner
def prefetch_first(start, end):
    """The lines that the loop's own prefetches come too late for."""
    for line in range(start, min(start + AHEAD, end), 64):
        prefetch_stream(line)


@inner
def split_rows(n_rows):
    """How many streams a run of rows is read as, and the rows of each."""
    streams = min(STREAMS, n_rows)
    return streams, (n_rows + streams - 1) // streams


@inner
def first_row(stream, length, n_rows):
    """Where a stream begins. Its last rows may be the first of the next one: they are met twice."""
    return min(stream * length, n_rows - length)


@inner
def start_streams(start, stride, n_rows, end):
    """Ask for the first lines of all streams but the first, which has been done."""
    streams, length = split_rows(n_rows)
    for i in range(1, streams):
        prefetch_first(start + first_row(i, length, n_rows) * stride, end)


@inner
def prefetch_block(block, n_bytes, end):
    """So many bytes' lines, AHEAD of a block; past `end` lies what another thread may be reading.

    A constant `n_bytes` is a row of instructions and no loop: a tenth of a kernel's instructions.
    """
    place = min(block + AHEAD, end)
    for line in range((n_bytes + 63) // 64):
        prefetch_stream(place + 64 * line)


@inner
def rows_at_once(n_rows, n_tokens, terms):
    """Rows that one token meets before the next one does."""
    return n_rows if n_tokens == terms else _MET_AGAIN


@inner
def terms_of(n_tokens, out_stride):
    """Rows of activations that are one token: two terms have one product, and no stride."""
    return n_tokens if out_stride == 0 else 1


@inner
def token_terms(acts, token, terms):
    """A token's last row of activations, and the one before it, or 0."""
    place = acts + 8 * token
    return load_i64(place + 8 * (terms - 1)), load_i64(place) if terms == 2 else 0
