"""`localr1 doctor`: every answer of every row, and this machine's own."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from localr1 import doctor
from localr1.doctor import cores, fitting_build, gpu, no_gpu, torch_build
from localr1.gpu import cubins
from localr1.machine import hardware
from offload import checks, gpus
from offload.checks import Check
from offload.gpus import Driver, Gpu
from offload.syscalls import PAGE
from tests.test_cli import Cli, assert_error, run_cli
from tests.test_machine import small_and_alone

__all__ = ["run_cli", "small_and_alone"]  # fixtures

GIB = 1 << 30


def card(capability: tuple[int, int] = (8, 9), bandwidth: float = 9e11) -> Gpu:
    return Gpu("RTX 4090", 24 * GIB, 23 * GIB, capability, "550.54", bandwidth, 25e9)


def driver(*cuda: int) -> Driver:
    return Driver("", "550.54", (cuda[0], cuda[1]))


@pytest.fixture
def remembered(small_and_alone: None) -> None:
    """A machine that was measured, in a cache folder of our own."""
    hardware()


def test_this_machine(remembered: None, run_cli: Cli, tmp_path: Path) -> None:
    began = time.perf_counter()
    result = run_cli("doctor")
    assert time.perf_counter() - began < 2
    assert (result.code, result.err) == (0, "")
    rows = {line[9:].split("  ")[0] for line in result.out.splitlines()}
    assert {"torch", "CPU kernels", "cores", "RAM", "disk of the models", "WSL2"} <= rows
    assert "nothing that is needed is missing" in result.out
    assert "\x1b" not in result.out
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


def test_json(remembered: None, run_cli: Cli) -> None:
    result = run_cli("doctor", "--json")
    report = json.loads(result.out)
    assert report["ok"] and result.code == 0
    assert all(set(row) == set(Check._fields) for row in report["checks"])
    names = [row["name"] for row in report["checks"]]
    assert len(names) == len(set(names))


def test_what_is_missing_is_named(
    remembered: None, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALR1_ISA", "mmx")
    result = run_cli("doctor")
    assert result.code == 1
    assert "MISSING  CPU kernels" in result.out and "hint: unset LOCALR1_ISA" in result.out
    assert result.out.endswith("missing: CPU kernels\n")
    assert not json.loads(run_cli("doctor", "--json").out)["ok"]


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, how: False)
    row = doctor._folder("models folder", tmp_path, "LOCALR1_MODELS names another")
    assert "not writable" in row.found and row.hint and not row.missing
    assert len(doctor._refusals(Path("/proc/self"))) == len(checks.checks())


@pytest.mark.parametrize(
    ("found", "cuda", "driver", "cards", "hint"),
    [
        ("2.13.0+cpu", None, Driver("there is no NVIDIA driver"), [], ""),
        ("2.13.0+cu130", "13.0", Driver("there is no NVIDIA driver"), [], ""),
        ("2.8.0+cu128", "12.8", driver(12, 8), [card()], ""),
        ("2.8.0+cu128", "12.8", driver(12, 4), [card()], ""),  # a minor version is compatible
        ("2.13.0+cpu", None, driver(12, 8), [card()], "cannot use the GPU"),
        ("2.13.0+cpu", None, driver(12, 8), [card()], "--torch-backend=cu128"),
        ("2.13.0+cu130", "13.0", driver(12, 6), [card()], "too new for the driver"),
        ("2.13.0+cu130", "13.0", driver(12, 6), [card()], "--torch-backend=cu126"),
        ("2.13.0+cu130", "13.0", driver(11, 4), [card()], "--torch-backend=cu118"),
        ("2.13.0+cu130", "13.0", driver(10, 2), [card()], "update the driver"),
        ("2.7.0+cu126", "12.6", driver(12, 8), [card((12, 0))], "too old for the GPU"),
        ("2.7.0+cu126", "12.6", driver(12, 8), [card((12, 0))], "--torch-backend=cu128"),
        ("2.7.0+cpu", None, driver(11, 8), [card((12, 0))], "update the driver"),
    ],
)
def test_torch(found: str, cuda: str | None, driver: Driver, cards: list[Gpu], hint: str) -> None:
    row = torch_build(found, cuda, driver, cards)
    assert hint in row.hint and bool(row.hint) == bool(hint)
    assert row.found.startswith(found) and not row.missing


@pytest.mark.parametrize("found", [None, "2.5.1+cu121", "1.13.0"])
def test_a_torch_that_will_not_do(found: str | None) -> None:
    assert torch_build(found, None, driver(12, 8), []).missing


def test_the_build_of_torch_that_is_here() -> None:
    import torch

    assert doctor._torch() == (str(torch.__version__), torch.version.cuda)


@pytest.mark.parametrize(
    ("cuda", "capability", "build"),
    [
        ((13, 1), (8, 9), "cu130"),
        ((12, 9), (8, 9), "cu128"),
        ((12, 2), (8, 9), "cu126"),
        ((12, 2), (12, 0), "cu128"),
        ((11, 8), (12, 0), None),
        ((10, 2), (8, 0), None),
    ],
)
def test_fitting_builds(
    cuda: tuple[int, int], capability: tuple[int, int], build: str | None
) -> None:
    assert fitting_build(cuda, capability) == build


def test_gpus() -> None:
    row = gpu(card())
    assert row.hint == "" and "8.9" in row.found and "23.0 of 24.0 GiB free" in row.found
    assert "900 GB/s" in row.found and "GB/s" not in gpu(card(bandwidth=0)).found
    assert "too old" in gpu(card((7, 5))).hint
    assert no_gpu(Driver("there is no NVIDIA driver")).hint == ""
    assert "nvidia-smi" in no_gpu(Driver("the NVIDIA driver does not answer: no device (100)")).hint
    assert no_gpu(driver(12, 8)).found == "none that CUDA shows"  # CUDA_VISIBLE_DEVICES is empty


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        (cores(8, 8, None, 16, 16), ""),
        (cores(8, 8, 16.0, 16, 16), ""),
        (cores(8, 2, 1.5, 16, 16), "the time of 1.5 CPUs"),
        (cores(2, 2, None, 4, 16), "4 of 16 CPUs are allowed"),
        (cores(2, 4, None, 4, 4), "more threads than cores"),
    ],
)
def test_cores(row: Check, hint: str) -> None:
    assert hint in row.hint and bool(row.hint) == bool(hint)


def test_text_holds_what_strings_say() -> None:
    rows = [Check("a", "[bold]x[/bold]"), Check("bb", "y", "z", "h"), Check("c", "", "", "", True)]
    assert doctor.text(rows).splitlines() == [
        "ok       a   [bold]x[/bold]",
        "note     bb  y   (needed: z)",
        "             hint: h",
        "MISSING  c   ",
        "",
        "missing: c",
    ]


def test_a_wrong_setting_is_an_error(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_THREADS", "none")
    assert_error(run_cli("doctor"), 2, "LOCALR1_THREADS")


def test_compiled_kernels_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "use_own_folder", lambda: str(tmp_path))
    assert "none yet" in doctor._compiled().found
    (tmp_path / "kernel.nbi").write_bytes(bytes(256 * PAGE))
    assert doctor._compiled().found.startswith("1.0 MiB in ")
    monkeypatch.setattr(doctor, "folder_is_shared", lambda: False)
    assert doctor._compiled().hint


def test_rows_of_a_gpu_are_for_those_who_have_one(remembered: None) -> None:
    names = {row.name for row in doctor.examine()}
    assert ({"Triton", "compiled GPU kernels"} <= names) == bool(gpus.look())


def test_the_compiler_of_the_gpu_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cubins.folder.cache_clear()
    try:
        row = doctor._compiled_for_gpu()
        assert "none yet" in row.found and not row.hint
        (tmp_path / "localr1" / "triton" / "0.cubin").write_bytes(bytes(256 * PAGE))
        assert doctor._compiled_for_gpu().found == f"1.0 MiB in {tmp_path}/localr1/triton"
    finally:
        cubins.folder.cache_clear()
    assert doctor._triton().found == version("triton") and not doctor._triton().hint
    monkeypatch.setitem(sys.modules, "triton", None)
    row = doctor._triton()
    assert row.found.startswith("does not import: ") and row.hint and not row.missing
