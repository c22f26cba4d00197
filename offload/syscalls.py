"""The kernel's calls about memory, as thin as they can be: madvise, mincore, O_DIRECT, fadvise.

Each gives an OSError where the system refuses or lacks it, so that a caller needs one way to fall
back; tests replace single functions here to play a machine that refuses. Not here: what to do then.

Through ctypes instead of `mmap.madvise`, because that one holds the GIL while pages are read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Buffer: TypeAlias = mmap.mmap | memoryview

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
# Linux's numbers, for Pythons and C headers that are older than the kernel.
MADV_WILLNEED, MADV_DONTNEED, MADV_HUGEPAGE, MADV_POPULATE_READ = 3, 4, 14, 22

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def address_of(buffer: Buffer) -> int:
    """Where the buffer begins in memory."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def madvise(address: int, nbytes: int, advice: int) -> None:
    """Tell the kernel how `nbytes` from `address` (a page's start) are to be treated."""
    _call("madvise", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_int(advice))


def resident_pages(address: int, nbytes: int) -> int:
    """How many pages from `address` are in memory now. Of files that the user may not write,
    the kernel says that all are.
    """
    flags = np.empty(-(-nbytes // PAGE), np.uint8)
    where = ctypes.c_void_p(flags.ctypes.data)
    _call("mincore", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), where)
    return int((flags & 1).sum())


def _call(name: str, *arguments: Any) -> None:
    if _libc is None:
        raise OSError(errno.ENOSYS, f"{name} is only called on Linux")
    function: Callable[..., int] = getattr(_libc, name)
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def open_direct(path: str | os.PathLike[str]) -> int:
    """A descriptor that reads past the page cache; offsets, sizes and memory in whole pages."""
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.ENOSYS, "this system has no O_DIRECT")
    return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)


def forget(descriptor: int, offset: int, nbytes: int) -> None:
    """Ask that the page cache lets go of a file's pages; 0 bytes: to its end. Pages that someone
    has mapped stay, and where the system has no such call, all do.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def anonymous(nbytes: int) -> mmap.mmap:
    """Private memory of our own. OSError where the system has no room."""
    # Shared memory, mmap's default, would get no huge pages.
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
