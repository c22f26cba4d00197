"""Launch a Triton kernel: on a GPU through the CUDA driver, on the CPU through the interpreter.

    launch(kernel, (blocks,), x, out, n, num_warps=4, BLOCK=1024)

GPU tensors choose the first way, on torch's current stream, so torch's graph capture records it;
its machine code comes from memory, from the disk, or from the compiler (cubins.py). CPU tensors
choose the second, which is for tests: TRITON_INTERPRET=1 must be set before Triton is imported.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction

from localr1.gpu.cubins import ALIGNMENT, Configuration, cubin
from localr1.gpu.driver import Function, GpuError, enter

__all__ = ["Configuration", "GpuError", "architecture", "function", "launch"]

_KINDS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
_LOADED: dict[Any, Function] = {}


def launch(
    fn: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    max_registers: int | None = None,
    **constants: Any,
) -> None:
    """Run `fn` over `grid` (1 to 3 sizes; nothing happens where one is 0).

    `args` are the parameters that `constants` does not name, in order: tensors (pointers; pinned
    CPU tensors beside GPU ones too), None, ints (i32, or i64 from 2**31 on), floats (fp32). Raises
    GpuError where the driver or the compiler fails, TypeError for an argument of another kind.
    """
    device = next((a.device for a in args if isinstance(a, torch.Tensor) and a.is_cuda), None)
    if device is None:
        _interpret(fn, grid, args, constants)
        return
    if device.index != torch.cuda.current_device():
        raise GpuError(f"the kernel's tensors are on {device}, which is not torch's current GPU")
    if 0 in grid:
        return
    kinds, words = _described(args)
    options = num_warps, num_stages, max_registers
    place = (id(fn), device.index, kinds, tuple(constants.items()), options)
    loaded = _LOADED.get(place)
    if loaded is None:
        configuration = _configuration(fn, kinds, constants, *options)
        loaded = _LOADED[place] = function(configuration, device.index)
    enter(device.index)
    sizes = (*grid, 1, 1)
    loaded.launch(
        (sizes[0], sizes[1], sizes[2]),
        [*words, 0, 0],  # no scratch memory, no profiler
        torch.cuda.current_stream().cuda_stream,
    )


def function(configuration: Configuration, device: int) -> Function:
    """The kernel in the GPU's memory; compiled if the disk does not have it."""
    arch = architecture(device)
    made = cubin(configuration, arch)
    overlaps = bool(configuration.complete(arch).constants.get("PDL"))
    return Function(made.code, made.name, made.shared, made.num_warps * 32, overlaps, device)


def architecture(device: int = 0) -> int:
    """89 for compute capability 8.9."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _described(args: tuple[Any, ...]) -> tuple[tuple[str | None, ...], list[int]]:
    """The kind of each argument (None: absent), and the bits of those that are there."""
    kinds: list[str | None] = []
    words: list[int] = []
    for value in args:
        if isinstance(value, torch.Tensor):
            address = value.data_ptr()
            kind = _KINDS[value.dtype]
            kinds.append(kind if address % ALIGNMENT == 0 else kind + ":1")
            words.append(address)
        elif value is None:
            kinds.append(None)
        elif type(value) is int:
            kinds.append("i32" if -(2**31) <= value < 2**31 else "i64")
            words.append(value & (2**64 - 1))
        elif type(value) is float:
            kinds.append("fp32")
            words.append(struct.unpack("I", struct.pack("f", value))[0])
        else:
            raise TypeError(f"a kernel takes no {type(value).__name__}")
    return tuple(kinds), words


def _configuration(
    fn: Any, kinds: tuple[str | None, ...], constants: dict[str, Any], *options: Any
) -> Configuration:
    names = [name for name in fn.arg_names if name not in constants]
    given = dict(zip(names, kinds, strict=False))
    if len(kinds) > len(names):
        raise TypeError(f"{fn.__name__} takes {len(names)} arguments, not {len(kinds)}")
    signature = {name: kind for name, kind in given.items() if kind is not None}
    absent = {name: None for name, kind in given.items() if kind is None}
    return Configuration(fn, signature, constants | absent, *options)


def _interpret(
    fn: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    if not isinstance(fn, InterpretedFunction):
        raise GpuError(
            f"{fn.__name__} got tensors of the CPU: only Triton's interpreter takes those"
        )
    _described(args)  # refuses the same arguments
    names = [name for name in fn.arg_names if name not in constants]
    fn[grid](**dict(zip(names, args, strict=False)), **constants)
