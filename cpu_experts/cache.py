"""Where compiled kernels are kept, and how they are compiled.

Numba's disk cache does not notice an edit in another file, so its folder is named after everything
that decides the machine code: our sources, numba, llvmlite, and the CPU. Every cached function has
one explicit signature: two processes that start at once then write the same files.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.extending import register_jitable

_LOCK = threading.RLock()
_PRIVATE = "localr1-numba-"  # begins the name of a folder that only this process knows


def _key() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for source in sorted(root.rglob("*.py")):
        digest.update(str(source.relative_to(root)).encode() + source.read_bytes())
    features = ",".join(sorted(k for k, on in llvm.get_host_cpu_features().items() if on))
    parts = (numba.__version__, llvmlite.__version__, llvm.get_host_cpu_name(), features)
    digest.update("|".join(parts).encode())
    return digest.hexdigest()[:16]


def _folder() -> Path:
    """$XDG_CACHE_HOME/localr1/numba/<key>, or a new temporary folder where that is read-only."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "localr1" / "numba" / _key()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix=_PRIVATE))


@cache
def use_own_folder() -> str:
    """Point Numba's disk cache at our folder, for this process; returns its path."""
    folder = str(_folder())
    os.environ["NUMBA_CACHE_DIR"] = folder
    numba.config.reload_config()
    return folder


def folder_is_shared() -> bool:
    """Whether other processes find what this one compiles."""
    return not Path(use_own_folder()).name.startswith(_PRIVATE)


# Numba gives every function two more, to be called from Python and from C: a fifth of the time that
# compiling takes.
_ALONE: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def inner(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorates a function that only compiled code calls; `options` are numba.njit's.

    LLVM works on a function again in each that calls it, so the loops of kernels are
    `inline="always"`: made once, not at every level. Of small functions that are called in many
    places, inlining costs more than it saves.
    """
    decorate = numba.njit(**_ALONE | options)
    return decorate if function is None else decorate(function)


def jitable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that compiled code calls, and Python too, or that loops are passed."""
    decorated: Callable[..., Any] = register_jitable(**_ALONE)(function)
    return decorated


@cache
def _compile(function: Callable[..., Any], kind: str, signature: Any, reorder: bool = False) -> Any:
    use_own_folder()
    if kind == "c":
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    fastmath = {"reassoc", "contract"} if reorder else False
    return numba.njit(signature, nogil=True, cache=True, error_model="numpy", fastmath=fastmath)(
        function
    )


def c_function(function: Callable[..., Any], signature: Any) -> int:
    """The address of `function` compiled as a C function; compiled or loaded once."""
    with _LOCK:
        return int(_compile(function, "c", signature).address)


def entry(
    function: Callable[..., Any], signature: Any, reorder: bool = False
) -> Callable[..., Any]:
    """`function` compiled for calls from Python with the GIL released; compiled or loaded once.

    `reorder` lets sums be taken in another order, so that they become vector instructions.
    """
    with _LOCK:
        compiled: Callable[..., Any] = _compile(function, "py", signature, reorder)
        return compiled
