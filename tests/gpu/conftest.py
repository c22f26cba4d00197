"""GPU kernels run on a GPU where there is one, else in Triton's interpreter, on the CPU."""

from __future__ import annotations

import pytest
import torch

from localr1.gpu import linear
from localr1.gpu.tiles import GemvTile
from tests.conftest import HAS_GPU


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if HAS_GPU else "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where kernels run: "cuda" or "cpu"."""
    return str(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random inputs that a failure can be repeated with."""
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def tall_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program takes Triton's interpreter as long with many rows as with one: 128 at a time, but
    in modules that say `REAL_TILES`.
    """
    if not HAS_GPU and not getattr(request.module, "REAL_TILES", False):
        monkeypatch.setattr(linear, "gemv_tile", lambda *_: GemvTile(1, 128, 16, 1, 1))
