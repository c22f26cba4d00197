"""What attention keeps of every token: one row of values per layer and token.

Latent attention's row is `[latent | rotated key]` (attention.py), grouped-query attention's
`[keys | values]` of all key heads (gqa.py); the cache knows only how wide it is.

Rows beyond `length` are scratch: a step writes them layer by layer and `commit` makes them count,
so an interrupted step leaves no half-written token. The first layers may lie in other memory than
the rest, and in another layout: then two caches are one behind the other (`before`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import torch

from localr1.models.cache_layout import CacheLayout


class KVCache:
    """Rows of up to `max_length` tokens, `[n_layers, max_length, width]`; and their `scales`,
    float32 `[n_layers, max_length, n_scales]`, where the layout has any.

    `before` is the cache of the layers before these, and becomes a part of this one: only this
    one's length counts. The memory is reserved here and touched only as tokens come, so a long
    context costs nothing until it is used.
    """

    def __init__(
        self,
        n_layers: int,
        max_length: int,
        layout: CacheLayout,
        device: torch.device | str = "cpu",
        before: KVCache | None = None,
    ) -> None:
        shape, dtype = (n_layers, max_length), getattr(torch, layout.dtype)
        self.rows = torch.empty(*shape, layout.width, dtype=dtype, device=device)
        self.scales: torch.Tensor | None = None
        if layout.n_scales:
            self.scales = torch.empty(*shape, layout.n_scales, device=device)
        self._layout, self._before = layout, before
        self._first = before.n_layers if before is not None else 0  # the number of rows[0]'s layer
        self.max_length = max_length
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory for all of its tokens."""
        return sum(part.nbytes for part in self._parts())

    @property
    def n_layers(self) -> int:
        """All layers, those before included."""
        return self._first + len(self.rows)

    def _parts(self) -> Iterator[torch.Tensor]:
        if self._before is not None:
            yield from self._before._parts()
        yield self.rows
        if self.scales is not None:
            yield self.scales

    def update(self, layer: int, new: torch.Tensor) -> torch.Tensor:
        """Write `new` `[T, width]` behind the committed rows; all rows up to it `[S, width]`."""
        end = self.length + new.shape[0]
        rows, _ = self.of(layer)
        rows[self.length : end] = new
        return rows[:end]

    def of(self, layer: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One layer's rows and scales."""
        if self._before is not None and layer < self._first:
            return self._before.of(layer)
        own = layer - self._first
        return self.rows[own], None if self.scales is None else self.scales[own]

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
        own = f"{len(self.rows)} x {self._layout}"
        return f"{self._before.layout}, {own}" if self._before is not None else own

    @property
    def token_nbytes(self) -> int:
        """Bytes of one token, in memory and in a file."""
        before = self._before.token_nbytes if self._before is not None else 0
        return before + len(self.rows) * self._layout.nbytes

    def save(self, file: BinaryIO, begin: int, end: int) -> int:
        """Write the tokens `begin` to `end`, one after the other, each with its scales behind its
        values; returns the bytes' CRC-32.
        """
        tokens = [part[:, begin:end].transpose(0, 1).flatten(1) for part in self._parts()]
        raw = torch.cat([part.view(torch.uint8).cpu() for part in tokens], 1).numpy()
        file.write(raw.data)
        return zlib.crc32(raw.data)

    def load(self, file: BinaryIO, n_tokens: int) -> int:
        """Read tokens behind the committed ones, for `commit` to make them count; their CRC-32.

        Raises EOFError: the file ends before.
        """
        raw = bytearray(file.read(n_tokens * self.token_nbytes))
        if len(raw) < n_tokens * self.token_nbytes:
            raise EOFError
        tokens = torch.frombuffer(raw, dtype=torch.uint8).view(n_tokens, -1)
        first = 0
        for part in self._parts():
            place = part[:, self.length : self.length + n_tokens].transpose(0, 1)
            nbytes = place[0].numel() * place.element_size()
            values = tokens[:, first : first + nbytes].contiguous().view(part.dtype)
            place.copy_(values.view(place.shape))
            first += nbytes
        return zlib.crc32(raw)
