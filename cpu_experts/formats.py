"""The table of weight formats: one row each. Kernels live in `kernels/<format>.py`.

A format is a block of `block_values` numbers in `block_bytes` bytes, laid out as in GGUF files. Its
activation kind says what its kernels multiply with: float32 for float formats, int8 for quantised
ones, in blocks that match the weights'.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT, Q8_32, Q8_K = 0, 1, 2  # activation kinds: see activations.py for their layouts


class UnsupportedFormat(ValueError, KeyError):
    """A weight type without a row in the table."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class QuantFormat:
    """One weight format. `ggml_type` is None for formats that GGUF does not have."""

    name: str
    ggml_type: int | None
    block_values: int
    block_bytes: int
    activation: int

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values; ValueError unless whole blocks fill it."""
        if cols <= 0 or cols % self.block_values:
            raise ValueError(f"{self.name} rows hold multiples of {self.block_values}, not {cols}")
        return cols // self.block_values * self.block_bytes

    @property
    def module(self) -> str:
        """The module of its kernels."""
        return f"cpu_experts.kernels.{self.name.lower()}"


FORMATS: dict[str, QuantFormat] = {
    row.name: row
    for row in (
        QuantFormat("F32", 0, 1, 4, FLOAT),
        QuantFormat("F16", 1, 1, 2, FLOAT),
        QuantFormat("BF16", 30, 1, 2, FLOAT),
        QuantFormat("FP8_E4M3", None, 1, 1, FLOAT),
        QuantFormat("Q4_0", 2, 32, 18, Q8_32),
        QuantFormat("Q4_1", 3, 32, 20, Q8_32),
        QuantFormat("Q5_0", 6, 32, 22, Q8_32),
        QuantFormat("Q5_1", 7, 32, 24, Q8_32),
        QuantFormat("Q8_0", 8, 32, 34, Q8_32),
        QuantFormat("IQ4_NL", 20, 32, 18, Q8_32),
        QuantFormat("Q2_K", 10, 256, 84, Q8_K),
        QuantFormat("Q3_K", 11, 256, 110, Q8_K),
        QuantFormat("Q4_K", 12, 256, 144, Q8_K),
        QuantFormat("Q5_K", 13, 256, 176, Q8_K),
        QuantFormat("Q6_K", 14, 256, 210, Q8_K),
        QuantFormat("IQ4_XS", 23, 256, 136, Q8_K),
    )
}
_BY_TYPE = {row.ggml_type: row for row in FORMATS.values() if row.ggml_type is not None}


def format_of(ggml_type: int) -> QuantFormat:
    """The row of a GGUF type number; UnsupportedFormat when there is none."""
    try:
        return _BY_TYPE[int(ggml_type)]
    except KeyError:
        raise UnsupportedFormat(f"no kernel for GGUF weight type {ggml_type}") from None
