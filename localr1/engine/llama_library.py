"""llama.cpp as a library: whether it can be had, what it complained about, the GPUs it can use.

It comes with llama-cpp-python, an extra of this package. Its log lines are kept here and never
reach the screen. Not here: any model (llama_cpp.py).
"""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from localr1.engine.llama_job import on_abort
from localr1.errors import Unsupported

INSTALL = "pip install 'localr1[llama-cpp]'"
_LEAST = (0, 3, 30)
_ERROR = 4  # ggml's log level
_GPU, _GPU_IN_CPU = 1, 2  # ggml's kinds of devices
_GPU_CODE = ("cuda", "hip", "metal", "sycl", "vulkan")  # parts of its libraries' names


class _Log:
    """The first line of an error, which is its cause; all others are dropped."""

    def __init__(self) -> None:
        self._cause = ""

    def take(self, level: int, text: bytes, data: object) -> None:
        """llama.cpp's callback: one line, or a part of one."""
        if level == _ERROR and not self._cause:
            self._cause = " ".join(text.decode("utf-8", "replace").split())[:300]

    def drain(self) -> str:
        """What went wrong since the last call, "" where llama.cpp did not say."""
        cause, self._cause = self._cause, ""
        return cause


_log = _Log()
_callbacks: list[Any] = []  # llama.cpp keeps a pointer: they live as long as the process


def missing() -> str:
    """Why llama.cpp cannot be used here; "" when it can."""
    if find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed"
    found = version("llama-cpp-python")
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if numbers < _LEAST:
        return f"llama-cpp-python {found} is older than {'.'.join(map(str, _LEAST))}"
    try:
        library()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"llama-cpp-python {found} cannot be loaded ({' '.join(str(error).split())})"
    return ""


@cache
def library() -> Any:
    """The module of llama.cpp's own functions, started and silenced. Raises what importing does."""
    lib: Any = import_module("llama_cpp.llama_cpp")
    _callbacks.append(lib.llama_log_callback(_log.take))
    lib.llama_log_set(_callbacks[-1], None)
    with suppress(AttributeError):  # one that is too old for it
        _callbacks.append(ctypes.CFUNCTYPE(None, ctypes.c_char_p)(on_abort))
        _part(lib, "ggml-base").ggml_set_abort_callback(_callbacks[-1])
    lib.llama_backend_init()
    return lib


def require() -> Any:
    """`library()`, or Unsupported with the command that installs it."""
    if why := missing():
        raise Unsupported(why, INSTALL)
    return library()


def complaints() -> str:
    """Why the last call failed, in llama.cpp's words."""
    return _log.drain()


def repacks_safely() -> bool:
    """Whether llama.cpp may lay weights out anew for this CPU, which makes it quicker.

    Not on CPUs with AMX: its layout for AMX ended the process on a Llama (Q4_1) and on an R1 (Q8_0)
    alike (0.3.36).
    """
    return b"AMX_INT8 = 1" not in library().llama_print_system_info()


def has_gpu_code() -> bool:
    """Whether the llama.cpp that is installed was built for GPUs; found without loading it."""
    found = find_spec("llama_cpp")
    folder = Path(found.origin).parent / "lib" if found and found.origin else None
    names = [path.name for path in folder.iterdir()] if folder and folder.is_dir() else []
    return any(f"ggml-{kind}" in name for name in names for kind in _GPU_CODE)


def free_vram() -> int:
    """Free bytes on the GPUs that this build of llama.cpp can use; 0 where there is none."""
    lib = library()
    if not lib.llama_supports_gpu_offload():
        return 0
    registry, devices = _part(lib, "ggml"), _part(lib, "ggml-base")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    by_kind = {_GPU: 0, _GPU_IN_CPU: 0}
    for number in range(registry.ggml_backend_dev_count()):
        device = ctypes.c_void_p(registry.ggml_backend_dev_get(ctypes.c_size_t(number)))
        kind = devices.ggml_backend_dev_type(device)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        devices.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        if kind in by_kind:
            by_kind[kind] += free.value
    return by_kind[_GPU] or by_kind[_GPU_IN_CPU]  # as llama.cpp itself chooses


def _part(lib: Any, name: str) -> Any:
    """The functions of one of the libraries that llama.cpp is linked with.

    Looked up through llama.cpp, as the folder may hold each of them twice, and a second one would
    have a state of its own. Windows knows a library by its name alone.
    """
    return ctypes.CDLL(name) if sys.platform == "win32" else lib._lib
