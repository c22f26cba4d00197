"""Experts in RAM that come to the GPU for a long prompt, a few at a time.

Few tokens are sooner answered where the experts lie. Many ask more arithmetic than a CPU has, and
then the whole bank crosses to the GPU in less time: a thread sends piece after piece, in the order
in which the layers will ask, and the GPU computes on the last piece while the next one travels.
From memory that the driver knows it goes straight; else through pinned buffers, which all cores
fill.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch

from cpu_experts import ExpertBank, QuantTensor
from localr1.gpu.driver import GpuError
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.registered import register
from localr1.gpu.sizes import STREAMED
from localr1.gpu.staging import Staging, bytes_at
from localr1.gpu.weights import GpuWeight, lay_apart
from localr1.models.gpu_grouped import add_answers, slots_of

_ALIGNMENT = 256  # bytes: what kernels and copies like
_PLACES = 2  # pieces that are on their way or wait to be laid apart


class Piece(NamedTuple):
    """Experts `first` to `end` of a layer."""

    layer: int
    first: int
    end: int


@dataclass
class _Place:
    """Memory of the GPU for a piece as it lies in the file, one matrix's experts behind another."""

    memory: torch.Tensor
    arrived: torch.cuda.Event | None = None
    taken: torch.cuda.Event | None = None  # laid apart: others may come


class Streaming:
    """The experts of `banks`, by layer, for one prompt at a time: `with streaming: ...`, inside
    which each layer is asked once, in order.
    """

    def __init__(self, banks: Mapping[int, ExpertBank], device: torch.device) -> None:
        self.banks, self.device = banks, device
        self.pieces = list(_pieces(banks))
        nbytes = max(_room(banks[piece.layer], piece) for piece in self.pieces)
        self._places = [_Place(self._empty(nbytes)) for _ in range(_PLACES)]
        self._apart = self._empty(nbytes)
        self._staging = Staging(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def _empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def register(self) -> Iterator[tuple[int, int]]:
        """Tell the driver of the experts' memory, which must be ours and not a file's: yields
        (bytes done, bytes in all). What it refuses goes through buffers.
        """
        spans = _whole_pages(
            part
            for bank in self.banks.values()
            for weight in _matrices(bank)
            for part in weight.parts
        )
        done, total = 0, sum(end - begin for begin, end in spans)
        with suppress(GpuError):
            for begin, end in spans:
                register(bytes_at(begin, end - begin), self)
                done += end - begin
                yield done, total

    def __enter__(self) -> Streaming:
        self._free: SimpleQueue[_Place | None] = SimpleQueue()
        self._sent: SimpleQueue[tuple[Piece, _Place] | BaseException] = SimpleQueue()
        for place in self._places:
            self._free.put(place)
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
        self._thread.join()

    def answer(
        self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """What the layer's experts answer to `x` float32 `[T, hidden]`, chosen by `ids` int32 and
        summed by `weights` float32 `[T, k]`.
        """
        bank = self.banks[layer]
        out, slots, done = torch.zeros_like(x), slots_of(ids, bank.n_experts), 0
        while done < bank.n_experts:
            sent = self._sent.get()
            if isinstance(sent, BaseException):
                raise sent
            piece, place = sent
            assert (piece.layer, piece.first) == (layer, done)
            add_answers(out, x, weights, slots, self._taken(bank, piece, place), done)
            done = piece.end
        return out

    def _taken(self, bank: ExpertBank, piece: Piece, place: _Place) -> list[GpuWeight]:
        """Gate, up and down of a piece, as kernels read them; the place is free for another."""
        if place.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(place.arrived)
        found, at = [], 0
        for weight in _matrices(bank):
            nbytes = _nbytes(weight, piece)
            there = slice(at, at + nbytes)
            shape, at = (piece.end - piece.first, *weight.shape[-2:]), at + _aligned(nbytes)
            data, layout = self._apart[there], GPU_FORMATS[weight.format.name]
            lay_apart(place.memory[there], data, layout)
            scales = _scales(weight, piece)
            on_gpu = None if scales is None else torch.from_numpy(scales).to(self.device)
            found.append(GpuWeight(layout.name, shape, data, on_gpu))
        if self._stream is not None:
            place.taken = torch.cuda.current_stream(self.device).record_event()
        self._free.put(place)
        return found

    def _send_all(self) -> None:
        """The thread's work; it ends where the prompt does, however that ends."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                for piece in self.pieces:
                    place = self._free.get()
                    if place is None:
                        return
                    self._send(piece, place)
                    self._sent.put((piece, place))
        except BaseException as error:  # which the prompt's reader raises
            self._sent.put(error)

    def _send(self, piece: Piece, place: _Place) -> None:
        if self._stream is not None and place.taken is not None:
            self._stream.wait_event(place.taken)
        at = 0
        for weight in _matrices(self.banks[piece.layer]):
            begin = at
            for source in _sources(weight, piece):
                target = place.memory[at : at + len(source)]
                self._staging.send(source, target)
                at += len(source)
            at = begin + _aligned(at - begin)
        if self._stream is not None:
            place.arrived = self._stream.record_event()


def _matrices(bank: ExpertBank) -> tuple[QuantTensor, QuantTensor, QuantTensor]:
    return bank.gate, bank.up, bank.down


def _pieces(banks: Mapping[int, ExpertBank]) -> Iterator[Piece]:
    """All experts of all layers, as many at a time as STREAMED bytes hold."""
    for layer, bank in sorted(banks.items()):
        step = max(1, STREAMED * bank.n_experts // bank.nbytes)
        for first in range(0, bank.n_experts, step):
            yield Piece(layer, first, min(first + step, bank.n_experts))


def _nbytes(weight: QuantTensor, piece: Piece) -> int:
    return (piece.end - piece.first) * weight.rows * weight.row_bytes


def _room(bank: ExpertBank, piece: Piece) -> int:
    return sum(_aligned(_nbytes(weight, piece)) for weight in _matrices(bank))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _sources(weight: QuantTensor, piece: Piece) -> Iterator[torch.Tensor]:
    """Where the bytes of a piece's experts lie."""
    own: Sequence[np.ndarray] = weight.parts[piece.first : piece.end]
    if len(weight.parts) == 1:
        each = weight.rows * weight.row_bytes
        own = [weight.parts[0][piece.first * each : piece.end * each]]
    for part in own:
        yield bytes_at(part.ctypes.data, part.size)


def _whole_pages(arrays: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Where these lie, from the beginning of a page to the end of one; what touches is one span."""
    joined: list[tuple[int, int]] = []
    for begin, nbytes in sorted((array.ctypes.data, array.nbytes) for array in arrays):
        end = -(-(begin + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if joined and begin <= joined[-1][1]:
            begin, end = joined[-1][0], max(end, joined.pop()[1])
        joined.append((begin, end))
    return joined


def _scales(weight: QuantTensor, piece: Piece) -> np.ndarray | None:
    """FP8's, of a piece's experts."""
    if not weight.scales:
        return None
    each = np.concatenate([scales.reshape(-1) for scales in weight.scales])
    return each.reshape(weight.count, -1)[piece.first : piece.end].reshape(-1)
