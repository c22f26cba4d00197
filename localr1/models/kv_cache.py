"""What attention keeps of every token: one row of values per layer and token.

Latent attention's row is `[latent | rotated key]` (attention.py), grouped-query attention's
`[keys | values]` of all key heads (gqa.py); the cache knows only how wide it is.

Rows beyond `length` are scratch: a step writes them layer by layer and `commit` makes them count,
so an interrupted step leaves no half-written token.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

import torch


class KVCache:
    """Rows of up to `max_length` tokens: `[n_layers, max_length, width]`.

    The memory is reserved here and touched only as tokens come, so a long context costs nothing
    until it is used.
    """

    def __init__(
        self,
        n_layers: int,
        max_length: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows = torch.empty(n_layers, max_length, width, dtype=dtype, device=device)
        self.max_length = max_length
        self.length = 0

    @staticmethod
    def nbytes(n_layers: int, max_length: int, width: int) -> int:
        """Bytes that a full cache of this shape takes."""
        return n_layers * max_length * width * 4

    def update(self, layer: int, new: torch.Tensor) -> torch.Tensor:
        """Write `new` `[T, width]` behind the committed rows; all rows up to it `[S, width]`."""
        end = self.length + new.shape[0]
        rows = self.rows[layer]
        rows[self.length : end] = new
        return rows[:end]

    def commit(self, n_tokens: int) -> None:
        """Make the next `n_tokens` rows of every layer count."""
        assert self.length + n_tokens <= self.max_length
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)

    @property
    def layout(self) -> str:
        """How a file holds a token, `61 x 576 float32`: other layouts cannot be loaded."""
        n_layers, _, width = self.rows.shape
        return f"{n_layers} x {width} {str(self.rows.dtype).removeprefix('torch.')}"

    @property
    def token_nbytes(self) -> int:
        """Bytes of one token, in memory and in a file."""
        return self.rows.shape[0] * self.rows.shape[2] * self.rows.element_size()

    def save(self, file: BinaryIO, begin: int, end: int) -> int:
        """Write the tokens `begin` to `end`, one after the other; returns the bytes' CRC-32."""
        raw = self.rows[:, begin:end].transpose(0, 1).contiguous().view(torch.uint8).cpu().numpy()
        file.write(raw.data)
        return zlib.crc32(raw.data)

    def load(self, file: BinaryIO, n_tokens: int) -> int:
        """Read tokens behind the committed ones, for `commit` to make them count; their CRC-32.

        Raises EOFError: the file ends before.
        """
        raw = bytearray(file.read(n_tokens * self.token_nbytes))
        if len(raw) < n_tokens * self.token_nbytes:
            raise EOFError
        n_layers, _, width = self.rows.shape
        rows = torch.frombuffer(raw, dtype=self.rows.dtype).view(n_tokens, n_layers, width)
        self.rows[:, self.length : self.length + n_tokens] = rows.transpose(0, 1)
        return zlib.crc32(raw)
