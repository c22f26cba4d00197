"""llama.cpp's memory of the conversation: what the engine and a saved session know as the cache.

Sequence 0 is the conversation. Sequence 1 is empty but while a piece of it goes to or comes from a
file: the cells of a piece belong to both then, and llama.cpp writes those of one sequence.
"""

from __future__ import annotations

import ctypes
import os
import struct
import zlib
from importlib.metadata import version
from typing import Any, BinaryIO

_TALK, _PIECE = 0, 1
N_SEQUENCES = 2
_HEADER = struct.Struct("<QI")  # bytes that follow, and their CRC-32


class LlamaCache:
    """Of the tokens in llama.cpp's memory the first `length` count, those behind are scratch.

    `context`: llama.cpp's handle, whose owner outlives this.
    """

    def __init__(self, lib: Any, context: Any, max_length: int) -> None:
        self._lib, self._context = lib, context
        self._memory = lib.llama_get_memory(context)
        self.held: int | None = 0  # tokens in llama.cpp's memory, scratch too; None: who knows
        self.length = 0
        self.max_length = max_length

    def clean(self) -> None:
        """Take away what does not count, so that the next tokens follow the committed ones."""
        if self.held != self.length:
            self._lib.llama_memory_seq_rm(self._memory, _TALK, self.length, -1)
            self.held = self.length

    def commit(self, n_tokens: int) -> None:
        """Make the next `n_tokens` count."""
        assert self.length + n_tokens <= self.max_length
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)

    @property
    def layout(self) -> str:
        """llama.cpp's own form, which another version may not read."""
        return f"llama.cpp, llama-cpp-python {version('llama-cpp-python')}"

    def save(self, file: BinaryIO, begin: int, end: int) -> int:
        """Write the tokens `begin` to `end`; returns the bytes' CRC-32."""
        lib, memory = self._lib, self._memory
        lib.llama_memory_seq_cp(memory, _TALK, _PIECE, begin, end)
        size = lib.llama_state_seq_get_size(self._context, _PIECE)
        piece = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data(self._context, piece, size, _PIECE)
        lib.llama_memory_seq_rm(memory, _PIECE, -1, -1)
        header = _HEADER.pack(size, zlib.crc32(piece))
        file.write(header)
        file.write(piece)
        return zlib.crc32(piece, zlib.crc32(header))

    def load(self, file: BinaryIO, n_tokens: int) -> int:
        """Read tokens behind the committed ones, for `commit` to make them count; their CRC-32.

        Damaged bytes never reach llama.cpp. Raises EOFError: the file ends before.
        """
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise EOFError
        size, own = _HEADER.unpack(header)
        begin = file.tell()
        if size > file.seek(0, os.SEEK_END) - begin:
            raise EOFError
        file.seek(begin)
        raw = file.read(size)
        crc = zlib.crc32(raw, zlib.crc32(header))
        if zlib.crc32(raw) != own:
            return crc
        self.clean()
        return crc if self._taken(raw, n_tokens) else crc ^ 1

    def _taken(self, raw: bytes, n_tokens: int) -> bool:
        """Hand a piece to llama.cpp; whether the tokens that it should hold are there now."""
        lib, memory = self._lib, self._memory
        piece = (ctypes.c_uint8 * len(raw)).from_buffer_copy(raw)
        self.held = None
        got = lib.llama_state_seq_set_data(self._context, piece, len(raw), _PIECE)
        lib.llama_memory_seq_cp(memory, _PIECE, _TALK, -1, -1)
        lib.llama_memory_seq_rm(memory, _PIECE, -1, -1)
        self.held = lib.llama_memory_seq_pos_max(memory, _TALK) + 1
        return bool(got == len(raw) and self.held == self.length + n_tokens)
