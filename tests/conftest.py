"""What every test stands on: a user's home that is empty."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from cpu_experts import cpu

HAS_GPU = torch.cuda.is_available()
# Whether GPU kernels run on a GPU or in Triton's interpreter is settled when somebody first imports
# Triton, for the whole process: transformers does, in tests that have nothing to do with it.
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
# A background job may have been told to ignore Ctrl-C; the programs that tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings or notes of the person who runs the tests; compiled kernels stay shared."""
    for name in [name for name in os.environ if name.startswith("LOCALR1_")]:
        if name != "LOCALR1_ISA":  # CI may force a tier for a whole run
            monkeypatch.delenv(name)
    if not cpu.supports(cpu.TIERS[0]):  # "auto" would take llama.cpp, and our engine is tested
        monkeypatch.setenv("LOCALR1_ISA", cpu.tier())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
