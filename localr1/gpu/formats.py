"""How each weight format lies in a GPU's memory, and which Triton functions read it.

Blocks keep their bytes, but on their way up each block's parts are laid apart: first the values of
all blocks, then the scales of all blocks (a *plane* for each part, in the order of `planes`). Every
row then begins at a multiple of 16 bytes of each plane of values and is read 16 bytes at a time,
which blocks of 34 or 210 bytes would not allow. No byte is added: planes are as large as the
file's blocks.

Kernels walk over *chunks*: 16 or 32 bytes of the first plane. A chunk's values come in `groups` of
16 that lie `group_step` apart in the row; chunk c begins at `c // halves * span + c % halves * 16`.
Three functions know a format's bits, and nothing else does:

    parts = load(data, scales, n_blocks, first, row, c, lane, cols, WORDS)
    code = codes(parts, c, GROUP, WORDS)
    scales(parts, c, GROUP)                     (), (a,) or (a, b): weight = a * (code - offset) + b

`first` (of each row: the blocks in front of it) and `c` are matrices of two axes or broadcast to
one; `lane` and the codes have one axis more. Codes of integers are uint32, of 0 to 255: one in each
of 16 places, or (WORDS) four in each of 4, as integer instructions take them. Other formats' codes
are 16 float32, times 2 to the -100th where they were made as subnormal numbers: UP brings them
back, and is multiplied into the activations instead, once for many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cpu_experts.formats import FORMATS
from localr1.gpu import formats_float, formats_k, formats_small

CHUNK = 16


@dataclass(frozen=True)
class GpuFormat:
    """One weight format on the GPU; see above."""

    name: str
    planes: tuple[tuple[int, int], ...]  # byte ranges of a block
    block_values: int
    groups: int
    group_step: int
    halves: int
    span: int
    load: Any
    codes: Any
    scales: Any
    n_scales: int = 1
    offset: int | None = None  # of codes that are integers
    up: float = 2.0**100

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, in all planes together."""
        return sum(end - begin for begin, end in self.planes)

    @property
    def chunk_values(self) -> int:
        """Values that a chunk holds."""
        return CHUNK * self.groups

    @property
    def integer(self) -> bool:
        """Whether codes are integers."""
        return self.offset is not None

    def walk(self) -> dict[str, Any]:
        """What products of integers are told of the format at compile time."""
        return {
            "LOAD": self.load,
            "CODES": self.codes,
            "SCALES": self.scales,
            "N_SCALES": self.n_scales,
            "OFFSET": self.offset,
            "GROUPS": self.groups,
            "GROUP_STEP": self.group_step,
            "HALVES": self.halves,
            "SPAN": self.span,
            "CHUNKS": self.block_values // self.chunk_values,
        }

    def constants(self) -> dict[str, Any]:
        """What other kernels are told."""
        return self.walk() | {"UP": self.up}


_FUNCTIONS = ("load", "codes", "scales")


def _float(name: str, n_bytes: int, load: Any) -> GpuFormat:
    plain = load, formats_float.codes_plain, formats_float.scales_plain
    return GpuFormat(name, ((0, 16 * n_bytes),), 16, 1, 0, 1, 16, *plain, n_scales=0, up=1.0)


def _fp8() -> GpuFormat:
    own = formats_float.load_fp8, formats_float.codes_fp8, formats_float.scales_fp8
    return GpuFormat("FP8_E4M3", ((0, 16),), 16, 1, 0, 1, 16, *own)


def _row(
    name: str,
    planes: tuple[tuple[int, int], ...],
    groups: int,
    step: int,
    halves: int,
    span: int,
    offset: int | None = None,
    n_scales: int = 1,
) -> GpuFormat:
    """A quantised format, whose functions bear its name."""
    block_values = FORMATS[name].block_values
    module: Any = formats_small if block_values == 32 else formats_k
    load, codes, scales = (getattr(module, f"{do}_{name.lower()}") for do in _FUNCTIONS)
    walk = groups, step, halves, span
    return GpuFormat(name, planes, block_values, *walk, load, codes, scales, n_scales, offset)


#                            planes of a block                     groups, step, halves, span
GPU_FORMATS: dict[str, GpuFormat] = {
    row.name: row
    for row in (
        _float("F32", 4, formats_float.load_f32),
        _float("F16", 2, formats_float.load_f16),
        _float("BF16", 2, formats_float.load_bf16),
        _fp8(),
        _row("Q4_0", ((2, 18), (0, 2)), 2, 16, 1, 32, offset=8),
        _row("Q4_1", ((4, 20), (0, 4)), 2, 16, 1, 32, offset=0, n_scales=2),
        _row("Q5_0", ((6, 22), (2, 6), (0, 2)), 2, 16, 1, 32, offset=16),
        _row("Q5_1", ((8, 24), (4, 8), (0, 4)), 2, 16, 1, 32, offset=0, n_scales=2),
        _row("Q8_0", ((2, 34), (0, 2)), 1, 0, 1, 16, offset=128),
        _row("IQ4_NL", ((2, 18), (0, 2)), 2, 16, 1, 32),
        _row("Q2_K", ((16, 80), (0, 16), (80, 84)), 4, 32, 2, 128, offset=0, n_scales=2),
        _row("Q3_K", ((32, 96), (0, 32), (96, 108), (108, 110)), 4, 32, 2, 128, offset=4),
        _row("Q4_K", ((16, 144), (0, 16)), 4, 16, 1, 64, offset=0, n_scales=2),
        _row("Q5_K", ((48, 176), (0, 16), (16, 48)), 4, 16, 1, 64, offset=0, n_scales=2),
        _row("Q6_K", ((128, 192), (0, 128), (192, 208), (208, 210)), 4, 32, 2, 128, offset=32),
        _row("IQ4_XS", ((8, 136), (0, 8)), 2, 16, 1, 32),
    )
}
