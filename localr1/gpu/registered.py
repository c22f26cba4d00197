"""RAM that the driver knows: a GPU reads it by its address, and copies from it need no buffer."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import torch

from localr1.gpu.driver import GpuError


def register(tensor: torch.Tensor, owner: object) -> None:
    """Let the GPU read `tensor`, which lies in RAM, by its address, as long as `owner` lives.

    GpuError where the driver refuses that.
    """
    problem = _runtime().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)
    if int(problem):
        with suppress(RuntimeError):  # torch tells the problem again behind its next kernel
            torch.zeros(1, device="cuda")
        raise GpuError(f"the GPU cannot read RAM by itself: {problem}")
    weakref.finalize(owner, _unregister, tensor).atexit = False


def _unregister(tensor: torch.Tensor) -> None:
    _runtime().cudaHostUnregister(tensor.data_ptr())


def _runtime() -> Any:
    return torch.cuda.cudart()
