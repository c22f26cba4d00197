"""How the linear kernels cut a product into pieces, per architecture, format and shape.

A table and three rules, not a search at run time: the first start must not measure, and every
tile is compiled in CI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localr1.gpu.formats import GPU_FORMATS

FEW = 8  # tokens that `gemv` takes
EXPANDED = 64  # chunks that a program of `expand_kernel` writes at a time
_LANES = 32  # chunks that one warp reads at a time
_REGISTERS = 64  # of a thread: 32 warps a multiprocessor are at work, and have loads under way
_MORE_REGISTERS = 96  # where it keeps the weights of four rows
_NOT_FOUR = ("Q5_K", "Q6_K")  # whose weights of four rows would need more
_FEWEST = 512  # warps, of fewer rows each if need be
_WARPS = 4096  # that keep the memory of the largest GPU busy
_MOST_WARPS = 4  # of a program: they share its rows


@dataclass(frozen=True, slots=True)
class GemvTile:
    """`rows` x `width` chunks at a time, `repeat` such tiles one below the other; the weights of
    `unroll` such steps are on their way at once (1 for integers).
    """

    repeat: int
    rows: int
    width: int
    unroll: int
    num_warps: int
    max_registers: int | None = None  # of a thread

    def constants(self, name: str, n_tokens: int, gated: bool) -> dict[str, Any]:
        """The constants of `gemv_kernel`."""
        row = GPU_FORMATS[name]
        own = {"GATED": gated, "REPEAT": self.repeat, "ROWS": self.rows, "WIDTH": self.width}
        if row.integer:
            return row.walk() | own
        return row.constants() | own | {"TOKENS": _power(n_tokens), "UNROLL": self.unroll}


def gemv_tile(
    arch: int, name: str, rows: int, cols: int, n_tokens: int, gated: bool = False
) -> GemvTile:
    """The tile for all `rows` of a stack together, of which a gated one has two matrices.

    Activations are used for as many rows as leave enough programs, and registers hold.
    """
    row = GPU_FORMATS[name]
    n_chunks = cols // row.chunk_values
    if row.integer:
        return _integer_tile(name, rows, n_chunks, gated)
    return _float_tile(rows, n_chunks, n_tokens, gated)


def _integer_tile(name: str, rows: int, n_chunks: int, gated: bool) -> GemvTile:
    """Two rows at a time, four of small chunks or where one step takes them whole; two warps share
    long ones. So few that many programs are there at once: what ends one, its sums and its stores,
    is hidden by others' reading.

    Measured on an H100; smaller GPUs need fewer warps, so the same tiles fill them.
    """
    width, warps = _width(n_chunks), 1
    down = _LANES // width
    if n_chunks > width == _LANES:
        width, warps = 2 * width, 2
    small = GPU_FORMATS[name].groups < 4
    whole = n_chunks <= width and name not in _NOT_FOUR
    matrices = 2 if gated else 1
    repeat = (4 if small or whole else 2) // matrices
    while repeat > 1 and rows // (repeat * down) * warps < _FEWEST:
        repeat //= 2
    registers = _MORE_REGISTERS if repeat * matrices == 4 else _REGISTERS
    return GemvTile(repeat, down, width, 1, warps, registers)


def _width(n_chunks: int) -> int:
    """Chunks of a row that a warp reads at a time: as many as leave few lanes without one."""
    return next(w for w in (_LANES, 16, 8, 4, 2, 1) if w * -(-n_chunks // w) <= 1.15 * n_chunks)


def _float_tile(rows: int, n_chunks: int, n_tokens: int, gated: bool) -> GemvTile:
    """Where few rows leave too few programs, several warps share each."""
    width, repeat, warps = _width(n_chunks), 1, 1
    down = _LANES // width
    if n_tokens == 1:
        repeat = 2 if gated else 4
    elif n_tokens == 2 and not gated:
        repeat = 2
    while repeat > 1 and width < _LANES and rows < _WARPS // 4 * repeat * down:
        repeat //= 2
    programs = rows // (repeat * down)
    while _LANES <= width <= n_chunks // 2 and warps < _MOST_WARPS and programs * warps < _WARPS:
        width, warps = 2 * width, 2 * warps
    steps = -(-n_chunks // width)
    unroll = 2 if steps > 1 and (width >= _LANES or repeat < 4) else 1
    return GemvTile(repeat, down, width, unroll, warps)


@dataclass(frozen=True, slots=True)
class MatmulTile:
    """`rows` rows by `tokens` tokens; `width` chunks of each row at a time."""

    rows: int
    tokens: int
    width: int
    num_warps: int
    num_stages: int

    def constants(self, name: str) -> dict[str, Any]:
        """The constants of `matmul_kernel`."""
        return GPU_FORMATS[name].constants() | {
            "PRECISE": name == "F32",
            "TOKENS": self.tokens,
            "ROWS": self.rows,
            "WIDTH": self.width,
        }


def matmul_tile(arch: int, name: str, n_tokens: int) -> MatmulTile:
    """The tile for `n_tokens` tokens; three sizes, for short, middling and long prompts."""
    width = 2 if GPU_FORMATS[name].groups == 4 or name == "F32" else 4
    if n_tokens <= 16:
        return MatmulTile(64, 16, width, 4, 3)
    if n_tokens <= 64 or name == "F32":
        return MatmulTile(64, 64, width, 4, 2)
    return MatmulTile(128, 128, width, 8, 2)


def _power(n: int) -> int:
    """The power of 2 that is not below n."""
    return 1 << (n - 1).bit_length()
