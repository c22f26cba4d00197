"""`localr1 doctor`: what this machine has, what is needed, and what would help.

A row is made by a function of what was found, so that all answers can be tested on one machine;
what is found comes from the functions that the loader uses. Not here: what a kernel may refuse to
residency (offload.checks), and how speeds are measured (localr1.machine).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cpu_experts
from cpu_experts import amx, cpu
from cpu_experts.cache import folder_is_shared, use_own_folder
from localr1.machine import hardware
from localr1.progress import ProgressLine
from localr1.settings import Settings, cache_folder, models_folder
from offload import checks, disk, gpus
from offload.checks import Check
from offload.gpus import Driver, Gpu
from offload.hardware import Hardware
from offload.syscalls import PAGE

_GIB = 1 << 30
_TORCH = (2, 6)  # as in pyproject.toml
_CAPABILITY = (8, 0)  # what the GPU kernels are made for
_BLACKWELL, _BLACKWELL_CUDA = (10, 0), (12, 8)  # its code is in builds from this CUDA on
_BUILDS = ((11, 8), (12, 6), (12, 8), (13, 0))  # of CUDA that torch is built for
_LEAST_RAM = 1 << 30  # tiny-r1, its context and its workspace


def main(remeasure: bool, as_json: bool) -> int:
    """Print the rows; 1 when something that is needed is missing, else 0."""
    rows = examine(remeasure)
    print(json.dumps(to_json(rows)) if as_json else text(rows))
    return int(any(row.missing for row in rows))


def examine(remeasure: bool = False) -> list[Check]:
    """All rows for this machine. Measures it, if that was not done before."""
    driver, seen = gpus.driver(), gpus.look()
    kernels = _kernels()
    rows = [kernels]
    if not kernels.missing:
        with ProgressLine(sys.stderr) as progress:
            machine = hardware(remeasure, progress.show, Settings({})["threads"])
        seen = machine.gpus
        rows += [_cores(machine), *_memory(machine), _disk(machine, models_folder())]
    return [
        *(gpu(card) for card in seen),
        *([] if seen else [no_gpu(driver)]),
        torch_build(*_torch(), driver, seen),
        *([_triton()] if seen else []),
        *rows,
        *_refusals(models_folder()),
        _folder("models folder", models_folder(), "LOCALR1_MODELS names another"),
        _folder("cache folder", cache_folder(), "kernels are compiled at every start"),
        _compiled(),
        *([_compiled_for_gpu()] if seen else []),
        _llama_cpp(),
    ]


def gpu(card: Gpu) -> Check:
    """A GPU that CUDA shows."""
    major, minor = card.capability
    speeds = ""
    if card.bandwidth:
        speeds = f", reads {card.bandwidth / 1e9:,.0f} GB/s, PCIe {card.pcie / 1e9:.1f} GB/s"
    sizes = f"{card.free / _GIB:.1f} of {card.total / _GIB:.1f} GiB free"
    old = card.capability < _CAPABILITY
    return Check(
        "GPU",
        f"{card.name}, compute capability {major}.{minor}, {sizes}{speeds}",
        "compute capability 8.0 or newer",
        "too old for the GPU kernels; the CPU does the work" if old else "",
    )


def no_gpu(driver: Driver) -> Check:
    """No GPU: none is there, or the driver does not work."""
    if driver.version or not driver.problem:
        return Check("GPU", "none that CUDA shows", "", "")
    broken = "does not answer" in driver.problem
    hint = "`nvidia-smi` says more; after an update of the driver, restart" if broken else ""
    return Check("GPU", f"none: {driver.problem}", "", hint)


def torch_build(found: str | None, cuda: str | None, driver: Driver, cards: Sequence[Gpu]) -> Check:
    """Whether torch `found`, built for `cuda` ("12.8", None: CPU), suits the driver and the GPUs.

    A build for a newer minor version of the driver's CUDA works (CUDA's minor version
    compatibility), one for a newer major version does not.
    """
    name, needed = "torch", f"{_TORCH[0]}.{_TORCH[1]} or newer"
    if found is None:
        return Check(name, "not installed", needed, "pip install torch", missing=True)
    if _numbers(found) < _TORCH:
        return Check(name, found, needed, "pip install --upgrade torch", missing=True)
    built = f"{found}, for CUDA {cuda}" if cuda else f"{found}, for the CPU"
    if not cards:
        return Check(name, built, needed)
    needed += f", for CUDA {driver.cuda[0]}.{driver.cuda[1]} or older"
    hint, newest = "", max(card.capability for card in cards)
    build = fitting_build(driver.cuda, newest)
    if cuda is None:
        hint = "this build cannot use the GPU"
    elif _numbers(cuda)[0] > driver.cuda[0]:
        hint = "this build is too new for the driver"
    elif newest >= _BLACKWELL and _numbers(cuda) < _BLACKWELL_CUDA:
        hint = "this build is too old for the GPU"
    if hint:
        way = f"uv pip install --reinstall torch --torch-backend={build}"
        hint += f"; {way}" if build else "; update the driver"
    return Check(name, built, needed, hint)


def fitting_build(driver: tuple[int, int], capability: tuple[int, int]) -> str | None:
    """The newest build of torch ("cu128") that a driver of this CUDA runs, for such a GPU."""
    least = _BLACKWELL_CUDA if capability >= _BLACKWELL else (0, 0)
    usable = [cuda for cuda in _BUILDS if cuda[0] <= driver[0] and cuda >= least]
    if not usable:
        return None
    newest = [cuda for cuda in usable if cuda[0] == max(usable)[0]]
    # What the driver knows, before what minor version compatibility lets it run.
    major, minor = max((cuda for cuda in newest if cuda <= driver), default=min(newest))
    return f"cu{major}{minor}"


def _numbers(text: str) -> tuple[int, int]:
    """`2.13.0+cpu` as (2, 13)."""
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _torch() -> tuple[str | None, str | None]:
    """torch's version and its CUDA, without the second that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return str(facts["__version__"]), facts.get("cuda")


def _kernels() -> Check:
    name, needed = "CPU kernels", "avx512_vnni for full speed"
    try:
        tier = cpu_experts.tier()
    except cpu_experts.UnsupportedISA as error:
        return Check(name, str(error), needed, "unset LOCALR1_ISA", missing=True)
    slow = "" if tier == "avx512_vnni" else "it works, at a fraction of the speed"
    return Check(name, f"{tier}, AMX for prompts" if amx.in_use() else tier, needed, slow)


def _cores(machine: Hardware) -> Check:
    return cores(machine.cores, machine.threads, cpu.cpu_quota(), _allowed(), os.cpu_count() or 1)


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores(physical: int, threads: int, quota: float | None, allowed: int, present: int) -> Check:
    """`physical` cores among the `allowed` CPUs of all `present`; the cgroup's `quota` of time."""
    found = f"{physical} physical, {threads} thread{'s' * (threads != 1)} used"
    hints = []
    if allowed < present:
        hints.append(f"{allowed} of {present} CPUs are allowed (taskset, a cpuset)")
    if quota is not None and quota < allowed:
        hints.append(f"the cgroup grants the time of {quota:g} CPUs")
    if threads > physical:
        hints.append("more threads than cores are slower than as many")
    return Check("cores", found, "", "; ".join(hints))


def _memory(machine: Hardware) -> list[Check]:
    free, total = machine.ram_available, machine.ram_total
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    hint = "close other programs" if free < _LEAST_RAM else ""
    speed = f"{machine.ram_bandwidth / 1e9:.1f} GB/s with {machine.threads} threads"
    return [
        Check("RAM", found, "1 GiB for tiny-r1", hint, missing=bool(hint)),
        Check("memory reads", speed),
        Check("int8 arithmetic", f"{machine.int8_ops / 1e9:,.0f} GOP/s"),
    ]


def _disk(machine: Hardware, folder: Path) -> Check:
    speed = f"reads {machine.disk_bandwidth / 1e9:.1f} GB/s"
    if "disk_bandwidth" in machine.assumed:
        speed = "speed not measured"
    return Check("disk of the models", f"{machine.disk_free / _GIB:.1f} GiB free, {speed}")


def _refusals(folder: Path) -> list[Check]:
    """What the kernel may refuse; O_DIRECT is asked of the models' disk, where we may write."""
    try:
        with tempfile.NamedTemporaryFile(dir=disk.existing(folder)) as file:
            file.write(bytes(PAGE))
            file.flush()
            return checks.checks(Path(file.name))
    except OSError:
        return checks.checks()


def _folder(name: str, folder: Path, otherwise: str) -> Check:
    writable = os.access(disk.existing(folder), os.W_OK)
    found = f"{folder}, {'writable' if writable else 'not writable'}"
    return Check(name, found, "writable", "" if writable else otherwise)


def _triton() -> Check:
    """The compiler of the GPU kernels, which comes with torch's CUDA builds."""
    name, needed = "Triton", "that it imports: it compiles the GPU kernels"
    try:
        triton = importlib.import_module("triton")
    except (ImportError, OSError) as problem:
        how = "`pip install triton` brings it; without it the CPU does the work"
        return Check(name, f"does not import: {problem}", needed, how)
    return Check(name, str(triton.__version__), needed)


def _compiled() -> Check:
    return kept("compiled kernels", Path(use_own_folder()), folder_is_shared())


def _compiled_for_gpu() -> Check:
    name = "compiled GPU kernels"
    try:
        cubins = importlib.import_module("localr1.gpu.cubins")
    except (ImportError, OSError):
        return Check(name, "none without Triton")
    folder: Path = cubins.folder()
    return kept(name, folder, folder.is_relative_to(cache_folder()))


def kept(name: str, folder: Path, stays: bool) -> Check:
    """Compiled kernels in a folder that other starts find again, if it `stays`."""
    if not stays:
        return Check(name, "not kept", "kept", "the cache folder cannot be written to")
    nbytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if not nbytes:
        return Check(name, "none yet: the first start compiles them, once")
    return Check(name, f"{nbytes / (1 << 20):.1f} MiB in {folder}")


def _llama_cpp() -> Check:
    try:
        found = version("llama-cpp-python")
    except PackageNotFoundError:
        found = "not installed"
    return Check("llama-cpp-python", found, "nothing; an extra: pip install 'localr1[llama-cpp]'")


def to_json(rows: Sequence[Check]) -> dict[str, object]:
    """What `--json` prints."""
    return {"ok": not any(row.missing for row in rows), "checks": [row._asdict() for row in rows]}


def text(rows: Sequence[Check]) -> str:
    """The rows for a person: state, name, what was found, what should be; hints below."""
    names = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        state = "MISSING" if row.missing else "note" if row.hint else "ok"
        needed = f"   (needed: {row.needed})" if row.hint and row.needed else ""
        lines.append(f"{state:<7}  {row.name:<{names}}  {row.found}{needed}")
        if row.hint:
            lines.append(f"{'':<{names + 11}}hint: {row.hint}")
    missing = [row.name for row in rows if row.missing]
    verdict = "missing: " + ", ".join(missing) if missing else "nothing that is needed is missing"
    return "\n".join([*lines, "", verdict])
