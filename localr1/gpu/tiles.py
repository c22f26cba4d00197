"""How the linear kernels cut a product into pieces, per architecture, format and shape.

A table and three rules, not a search at run time: the first start must not measure, and every
tile is compiled in CI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localr1.gpu.formats import GPU_FORMATS

FEW = 8  # tokens that `gemv` takes
PIECE = 2048  # tokens of a prompt that a part takes at a time: 300 MB in R1's dense layers
EXPANDED = 64  # chunks that a program of `expand_kernel` writes at a time
_LANES = 32  # chunks that one warp reads at a time
_WARPS = 4096  # that keep the memory of the largest GPU busy; smaller ones need fewer
_MOST_WARPS = 4  # of a program: they share its rows


@dataclass(frozen=True, slots=True)
class GemvTile:
    """`rows` x `width` chunks at a time, `repeat` such tiles one below the other."""

    repeat: int
    rows: int
    width: int
    unroll: int
    num_warps: int

    def constants(self, name: str, n_tokens: int, gated: bool) -> dict[str, Any]:
        """The constants of `gemv_kernel`."""
        format = GPU_FORMATS[name]
        return (format.walk() if format.integer else format.constants()) | {
            "TOKENS": _power(n_tokens),
            "GATED": gated,
            "REPEAT": self.repeat,
            "ROWS": self.rows,
            "WIDTH": self.width,
            "UNROLL": self.unroll,
        }


def gemv_tile(
    arch: int, name: str, rows: int, cols: int, n_tokens: int, gated: bool = False
) -> GemvTile:
    """The tile for all `rows` of a stack together, of which a gated one has two matrices.

    Activations are used for as many rows as registers hold; where that leaves too few programs,
    several warps share each row. Rows that 32 lanes would not fill are read by fewer.
    """
    groups = GPU_FORMATS[name].groups
    n_chunks = cols // GPU_FORMATS[name].chunk_values
    width = next(w for w in (_LANES, 16, 8, 4, 2, 1) if w * -(-n_chunks // w) <= 1.15 * n_chunks)
    down, repeat, warps = _LANES // width, 1, 1
    if n_tokens == 1:
        repeat = 2 if gated or groups > 2 else 4
    elif n_tokens == 2 and groups <= 2 and not gated:
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
