"""Bytes of RAM on their way to a GPU: straight from memory that the driver knows, else through
pinned buffers, which all cores fill.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

STAGED = 32 << 20  # bytes of a buffer
_BUFFERS = 3  # one is filled while others travel


class Staging:
    """The buffers of one thread."""

    def __init__(self, device: torch.device) -> None:
        count = _BUFFERS if device.type == "cuda" else 0
        self._buffers = [
            torch.empty(STAGED, dtype=torch.uint8, pin_memory=True) for _ in range(count)
        ]
        self._sent: list[torch.cuda.Event | None] = [None] * _BUFFERS
        self._turn = 0

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Enqueue the copy of `source` to `target`, uint8 on the device, on the current stream."""
        if not self._buffers or source.is_pinned():
            target.copy_(source, non_blocking=True)
            return
        for piece, place in zip(source.split(STAGED), target.split(STAGED), strict=True):
            sent, buffer = self._sent[self._turn], self._buffers[self._turn][: len(piece)]
            if sent is not None:
                sent.synchronize()
            buffer.copy_(piece)  # by all cores
            place.copy_(buffer, non_blocking=True)
            self._sent[self._turn] = torch.cuda.current_stream().record_event()
            self._turn = (self._turn + 1) % _BUFFERS


def bytes_at(address: int, nbytes: int) -> torch.Tensor:
    """Memory as uint8, by its address: torch warns of arrays that cannot be written."""
    there = (ctypes.c_uint8 * nbytes).from_address(address)
    return torch.from_numpy(np.ctypeslib.as_array(there))
