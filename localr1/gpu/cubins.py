"""Machine code of kernels: what decides it (`Configuration`), how it is made, where it is kept.

Triton is only the compiler here, for which it needs no GPU and no C compiler; its launcher, which
needs both, is never touched. Files are written whole or not at all, so that programs that start at
once only do some work twice, and a damaged file is compiled again.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from localr1.gpu import pdl
from localr1.gpu.driver import GpuError

# Kernels know numbers of the mailbox.
_PACKAGES = (Path(__file__).parent, Path(__file__).parents[2] / "cpu_experts")
_MAGIC = b"localr1 cubin 1\n"
ALIGNMENT = 16  # bytes: pointers and strides that allow loads of full width


@dataclass(frozen=True)
class Configuration:
    """All that decides a kernel's machine code, but for the architecture.

    `signature` gives the type of each argument that exists at run time, in any order: `i32`, `i64`,
    `fp32`, `*bf16`, ... A pointer is at a multiple of 16 bytes; `*bf16:1` says that it may not be.
    Nothing is known of integers: sizes that a kernel should know are constants. `constants` gives
    the rest: values, None for absent pointers, and Triton functions that the kernel calls.
    """

    fn: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None  # of a thread; None: as many as the compiler likes

    def complete(self, arch: int) -> Configuration:
        """The same with the values of constants that the kernel itself supplies, and PDL (pdl.py)
        where it has that.
        """
        defaults = {p.name: p.default for p in self.fn.params if p.has_default}
        given = {**self.constants, **self.signature}
        if "PDL" in defaults:
            given["PDL"] = arch >= pdl.ARCHITECTURE
        names = [name for name in self.fn.arg_names if name not in self.signature]
        missing = [name for name in names if name not in given and name not in defaults]
        unknown = sorted(given.keys() - set(self.fn.arg_names))
        if missing or unknown:
            raise TypeError(f"{self.fn.__name__}: missing {missing}, unknown {unknown}")
        constants = {name: given.get(name, defaults.get(name)) for name in names}
        return replace(self, constants=constants)

    def to_json(self) -> str:
        """As text, for another process: functions become their places."""
        constants = {name: _written(value) for name, value in self.constants.items()}
        options = self.num_warps, self.num_stages, self.max_registers
        return json.dumps([_written(self.fn), dict(self.signature), constants, *options])

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """What `to_json` wrote; imports the modules of the functions."""
        fn, signature, constants, *options = json.loads(text)
        read = {name: _read(value) for name, value in constants.items()}
        return cls(_read(fn), signature, read, *options)


def _written(value: Any) -> Any:
    if not hasattr(value, "arg_names"):
        return value
    return {"module": value.fn.__module__, "name": value.fn.__qualname__}


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return getattr(importlib.import_module(value["module"]), value["name"])


@dataclass(frozen=True)
class Cubin:
    """Compiled code. `parameters` are the arguments that it takes, in order."""

    code: bytes
    name: str
    shared: int
    num_warps: int
    parameters: tuple[str, ...]


def key(configuration: Configuration, arch: int) -> str:
    """A name for the machine code: equal only if all is that it is made of."""
    full = configuration.complete(arch)
    constants = {
        name: f"{type(value).__name__} {_written(value)}" for name, value in full.constants.items()
    }
    parts = (
        *(_sources(inspect.getfile(full.fn.fn)), _written(full.fn), triton.__version__, arch),
        *(sorted(full.signature.items()), sorted(constants.items())),
        *(full.num_warps, full.num_stages, full.max_registers),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _sources(file: str) -> str:
    """A digest of what kernels are written in: our packages, and `file`, which need not be theirs.

    Triton's own key of a function depends, in 3.6, on which others it was asked for before: two
    processes would not find what the other has compiled.
    """
    digest = hashlib.sha256()
    for folder in _PACKAGES:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def cubin(configuration: Configuration, arch: int) -> Cubin:
    """From the disk, else compiled and left there. GpuError where the compiler refuses."""
    path = folder() / f"{key(configuration, arch)[:32]}.cubin"
    found = _load(path)
    if found is None:
        found = compiled(configuration, arch)
        _save(path, found)
    return found


def is_kept(configuration: Configuration, arch: int) -> bool:
    """Whether the disk has it, as far as a file's presence says."""
    return (folder() / f"{key(configuration, arch)[:32]}.cubin").exists()


@cache
def folder() -> Path:
    """$XDG_CACHE_HOME/localr1/triton, or a new temporary folder where that is read-only."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "localr1" / "triton"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="localr1-triton-"))


def _load(path: Path) -> Cubin | None:
    """None where there is no file, or not all of it."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    magic, digest, rest = text[: len(_MAGIC)], text[len(_MAGIC) :][:32], text[len(_MAGIC) + 32 :]
    if magic != _MAGIC or hashlib.sha256(rest).digest() != digest:
        return None
    facts, _, code = rest.partition(b"\n")
    name, shared, num_warps, parameters = json.loads(facts)
    return Cubin(code, name, shared, num_warps, tuple(parameters))


def _save(path: Path, made: Cubin) -> None:
    """Best effort: a full disk costs the next start some time, and nothing else."""
    facts = [made.name, made.shared, made.num_warps, made.parameters]
    rest = json.dumps(facts).encode() + b"\n" + made.code
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent)
    except OSError:
        return
    try:
        with open(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(rest).digest() + rest)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def compiled(configuration: Configuration, arch: int) -> Cubin:
    """Compile, whatever the disk holds. Raises GpuError with the compiler's words."""
    full = configuration.complete(arch)
    fn, names = full.fn, full.fn.arg_names
    if not isinstance(fn, JITFunction):
        raise GpuError(f"{fn.fn.__name__} was imported for Triton's interpreter")
    kinds = {name: full.signature.get(name, "constexpr") for name in names}
    aligned = [["tt.divisibility", ALIGNMENT]]
    attributes = {
        (place,): aligned
        for place, name in enumerate(names)
        if kinds[name].startswith("*") and ":" not in kinds[name]
    }
    plain = {name: kind.partition(":")[0] for name, kind in kinds.items()}
    options = {
        "num_warps": full.num_warps,
        "num_stages": full.num_stages,
        "maxnreg": full.max_registers,
        "enable_fp_fusion": True,
    }
    try:
        with tempfile.TemporaryDirectory() as scratch, triton.knobs.cache.scope():
            triton.knobs.cache.dir = scratch  # Triton's own cache has nothing to add to ours
            source = ASTSource(fn, plain, dict(full.constants), attributes)
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            code, facts = made.asm["cubin"], made.metadata
    except Exception as error:
        raise GpuError(f"{fn.__name__} does not compile for sm_{arch}: {error}") from error
    if facts.global_scratch_size or facts.profile_scratch_size:
        raise GpuError(f"{fn.__name__} asks for scratch memory, which launch.py does not give")
    parameters = tuple(name for name in names if kinds[name] != "constexpr")
    return Cubin(code, facts.name, facts.shared, facts.num_warps, parameters)
