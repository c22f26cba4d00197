"""GPU kernels run on a GPU where there is one, else in Triton's interpreter, on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import HAS_GPU


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if HAS_GPU else "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where kernels run: "cuda" or "cpu"."""
    return str(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random inputs that a failure can be repeated with."""
    torch.manual_seed(1)
