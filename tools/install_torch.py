"""Put the torch build that fits this machine into the Python that runs this file.

Run by the Makefile inside .venv, before anything that depends on torch: plain `pip install torch`
on Linux brings several GB of CUDA libraries, which a machine without an NVIDIA GPU never uses.
Standard library only. It names no package index: pip uses those it is configured with, and uv knows
PyTorch's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What we test with; used where pip already knows a place that holds CPU builds.
CPU_BUILD = "torch==2.13.0+cpu"
REQUIREMENT = "torch>=2.6"


def has_torch() -> bool:
    """Whether this Python can already import torch."""
    probe = [sys.executable, "-c", "import torch"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver runs here (on WSL2 only nvidia-smi says so)."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(*command: str, quiet: bool = False) -> bool:
    """Run a module of this Python; True if it succeeded. `quiet` hides why it did not."""
    whole = [sys.executable, "-m", *command]
    return (
        subprocess.run(whole, stderr=subprocess.DEVNULL if quiet else None, check=False).returncode
        == 0
    )


def pip_install(*packages: str, quiet: bool = False) -> bool:
    """Install with pip from the indexes it is configured with."""
    return run("pip", "install", "--quiet", "--disable-pip-version-check", *packages, quiet=quiet)


def uv_install(backend: str) -> bool:
    """Install torch with uv: backend "cpu", or "auto" for the one that fits the driver."""
    return pip_install("uv") and run(
        "uv",
        "pip",
        "install",
        "--python",
        sys.executable,
        f"--torch-backend={backend}",
        REQUIREMENT,
    )


def say(text: str) -> None:
    """One line for the person who waits."""
    print(f"localr1: {text}", flush=True)


def main() -> int:
    """Install torch; 0 if it is there afterwards."""
    if has_torch():
        return 0
    if has_nvidia_driver():
        say("installing torch, the CUDA build that fits this NVIDIA driver (a few GB)")
        done = uv_install("auto")
    else:
        say("installing torch, the CPU build, as there is no NVIDIA driver here (about 200 MB)")
        done = pip_install(CPU_BUILD, quiet=True) or uv_install("cpu")
    if not done:
        say("that failed; trying torch as pip finds it, which may download several GB")
        done = pip_install(REQUIREMENT)
    return 0 if done and has_torch() else 1


if __name__ == "__main__":
    sys.exit(main())
