"""`tools/record_gpu.py` where there is no GPU: what it refuses, and what a record says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localr1 import bench_synthetic
from localr1.models.config import ModelConfig
from offload.hardware import on_paper
from tests.test_bench_synthetic import GIB, QUICK, TINY
from tools import record_gpu
from tools.check_benchmarks import DOCUMENT


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    machine = on_paper(vram=None, ram=16 * GIB)
    return bench_synthetic.measure("tiny", ModelConfig.from_hf(TINY), QUICK, machine)


def test_without_a_gpu_nothing_is_run() -> None:
    before = DOCUMENT.read_bytes()
    command = [sys.executable, "-m", "tools.record_gpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("record_gpu: there is no NVIDIA GPU to use")
    assert done.stderr.count("\n") == 1 and DOCUMENT.read_bytes() == before


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(record_gpu.Failed, match=r"3 layers hold no routed experts .exit code 2"):
        record_gpu.measured("deepseek-r1", ["--layers", "3"])


def test_finished_rows_are_kept_beside_those_that_failed(
    result: dict[str, Any], tmp_path: Path
) -> None:
    text = record_gpu.table({"R1, 8K": result}, {"R1, 1K": "it does not fit (exit code 4)"})
    lines = text.splitlines()
    assert "| R1, 1K | not measured | it does not fit (exit code 4) | |" in lines
    assert any(line.startswith("| R1, 8K | decode | ") for line in lines)
    assert any(line.startswith("| R1, 8K | RAM held, plan's ") for line in lines)
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{record_gpu.BEGIN}\nold\n{record_gpu.END}\nafter\n")
    record_gpu.record(text, document)
    kept = document.read_text()
    assert kept.startswith("before\n") and kept.endswith("after\n") and "\nold\n" not in kept
    assert text in kept
