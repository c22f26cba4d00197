"""AMX for processors without it: a pytest plugin (`-p`) under which the tests of AMX run anywhere.

The registers are memory, of one thread. Only the tiles' instructions are emulated, so AVX-512 with
bf16 must be there. Machine code that it makes must not stay: $XDG_CACHE_HOME has to be a folder
that only this process uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import cpu_experts
from cpu_experts import amx, bf16_products, pool
from cpu_experts.cache import inner
from cpu_experts.memory import bits_to_f32, floats, load_i64, load_u16, store_i64

_MEMORY = np.zeros(amx._REGISTERS * amx.TILE_BYTES, np.uint8)
_REGISTERS = int(_MEMORY.ctypes.data)
_set_threads = pool.set_threads


def _moved(register: int, stored: bool) -> Any:
    """An operation (address, stride): 16 rows into a register, or from it."""
    at = _REGISTERS + register * amx.TILE_BYTES

    @inner
    def move(address, stride):
        for row in range(16):
            for i in range(0, 64, 8):
                tile, memory = at + 64 * row + i, address + row * stride + i
                if stored:
                    store_i64(memory, load_i64(tile))
                else:
                    store_i64(tile, load_i64(memory))

    return move


def _clear(register: int) -> Any:
    at = _REGISTERS + register * amx.TILE_BYTES

    @inner
    def clear():
        for i in range(0, amx.TILE_BYTES, 8):
            store_i64(at + i, 0)

    return clear


def _dot(total: int, a: int, b: int) -> Any:
    sums, left, right = (_REGISTERS + number * amx.TILE_BYTES for number in (total, a, b))

    @inner
    def dot():
        for i in range(16):
            for j in range(16):
                values = floats(sums + 64 * i + 4 * j, 1)
                for k in range(32):
                    one = bits_to_f32(load_u16(left + 64 * i + 2 * k) << 16)
                    other = right + 64 * (k // 2) + 4 * j + k % 2 * 2
                    values[0] += one * bits_to_f32(load_u16(other) << 16)

    return dot


@inner
def _configure(address):
    return


@inner
def _release():
    return


def _one_thread(threads: int | None) -> None:
    _set_threads(1)


for i in range(8):
    setattr(bf16_products, f"_load{i}", _moved(i, False))
for i in range(4):
    setattr(bf16_products, f"_clear{i}", _clear(i))
    setattr(bf16_products, f"_store{i}", _moved(i, True))
    setattr(bf16_products, f"_dot{i}", _dot(i, 4 + i // 2, 6 + i % 2))
amx.configure, amx.release, amx.granted = _configure, _release, lambda: True
cpu_experts.set_threads = pool.set_threads = _one_thread
_set_threads(1)
