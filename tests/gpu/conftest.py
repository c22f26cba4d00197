"""GPU kernels run on a GPU where there is one, else in Triton's interpreter, on the CPU.

Which of the two is settled when Triton is imported, for the whole process.
"""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if HAS_GPU else "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where kernels run: "cuda" or "cpu"."""
    return str(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random inputs that a failure can be repeated with."""
    torch.manual_seed(1)
