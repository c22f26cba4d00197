"""AMX: products of bf16 tiles in eight registers of their own, 16 rows of 64 bytes each.

Only for prompts: a core of a Xeon does 3 TFLOP/s with them, where the dot products of AVX-512 VNNI
come to 0.85. Linux gives a process these registers when it asks; who does not have them, or does
not get them, reads prompts with int8 activations, and so does who names a tier (LOCALR1_ISA).
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types

from cpu_experts.cpu import features, tier
from cpu_experts.memory import I32, I64
from cpu_experts.simd import FLOATS, I8, I16, INTS, call, cast, constant, operation, vector
from cpu_experts.vectors import ADDRESS

_NEEDS = ("amx-tile", "amx-bf16", "avx512bf16")
_ARCH_PRCTL, _ASK, _TILE_DATA = 158, 0x1023, 18  # Linux on x86-64: a permission for the process
_PALETTE, _REGISTERS, _ROW_BYTES = 1, 8, 64
GROUP = 16  # rows of a tile: tokens, or rows of weights
TILE_COLS, TILE_BYTES = 32, 1024
SUPER_BYTES = 8 * TILE_BYTES  # of 16 rows x 256 columns
binding.initialize_native_asmparser()  # for _to_bf16


@cache
def granted() -> bool:
    """Whether the CPU has AMX for bf16, and Linux lets this process use it: asked for once."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not features() >= {*_NEEDS}:
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ASK, _TILE_DATA) == 0


def in_use() -> bool:
    """Whether prompts are read with it: where nothing else is asked for, beside AVX-512."""
    named = os.environ.get("LOCALR1_ISA", "").strip()
    return not named and tier() == "avx512_vnni" and granted()


def _whole_tiles() -> np.ndarray:
    """What LDTILECFG reads: all registers are whole."""
    config = np.zeros(64, dtype=np.uint8)
    config[0] = _PALETTE
    config[16 : 16 + 2 * _REGISTERS].view(np.uint16)[:] = _ROW_BYTES
    config[48 : 48 + _REGISTERS] = GROUP
    return config


WHOLE_TILES = _whole_tiles()


def _number(register: int) -> ir.Constant:
    return ir.Constant(I8, register)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I8.as_pointer())


# The calling thread's registers, by a configuration at an address; and given back.
configure = operation(
    types.void,
    (ADDRESS,),
    lambda b, a: call(b, "llvm.x86.ldtilecfg", ir.VoidType(), _pointer(b, a)),
)
release = operation(types.void, (), lambda b: call(b, "llvm.x86.tilerelease", ir.VoidType()))


def _moved(name: str, register: int) -> Any:
    def emit(builder: Any, address: Any, stride: Any) -> None:
        assert stride.type == I64
        call(builder, name, ir.VoidType(), _number(register), _pointer(builder, address), stride)

    return operation(types.void, (ADDRESS, ADDRESS), emit)


def tile_load(register: int) -> Any:
    """An operation (address, stride): 16 rows into a register."""
    return _moved("llvm.x86.tileloadd64", register)


def tile_store(register: int) -> Any:
    """An operation (address, stride): a register's 16 rows to memory."""
    return _moved("llvm.x86.tilestored64", register)


def tile_clear(register: int) -> Any:
    """An operation: zeros."""
    return operation(
        types.void, (), lambda b: call(b, "llvm.x86.tilezero", ir.VoidType(), _number(register))
    )


def tile_dot(total: int, a: int, b: int) -> Any:
    """An operation: register total [16, 16] float32 += a [16, 32] @ b, both bf16.

    b holds pairs: row i is (value 2i, value 2i + 1) of each of 16 columns.
    """
    numbers = [_number(register) for register in (total, a, b)]
    return operation(
        types.void, (), lambda builder: call(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), *numbers)
    )


def _to_bf16(builder: Any, low: Any, high: Any) -> Any:
    """VCVTNE2PS2BF16."""
    kind = ir.FunctionType(vector(I32, 16), [low.type, high.type])
    return builder.call(ir.InlineAsm(kind, "vcvtne2ps2bf16 $1, $2, $0", "=v,v,v"), [low, high])


def _to_pairs(builder: Any, even: Any, odd: Any) -> Any:
    words = cast(builder, _to_bf16(builder, even, odd), I16)
    lanes = [lane for i in range(16) for lane in (i, 16 + i)]
    return cast(builder, builder.shuffle_vector(words, words, constant(I32, lanes)), I32)


to_bf16 = operation(INTS, (FLOATS, FLOATS), _to_bf16)  # rounded, those of the first before
to_pairs = operation(INTS, (FLOATS, FLOATS), _to_pairs)  # rounded, of both in turn


def _prefetch_far(builder: Any, address: Any) -> None:
    flags = [ir.Constant(I32, flag) for flag in (0, 2, 1)]  # read, second cache, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), _pointer(builder, address), *flags)


prefetch_far = operation(types.void, (ADDRESS,), _prefetch_far)  # a line, into the second cache
