"""Bytes on their way to a GPU: all of them, in order, wherever they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from localr1.gpu import staging
from localr1.gpu.staging import Staging, bytes_at


@pytest.mark.parametrize("nbytes", [1, 1 << 16, 1_000_003])
def test_what_arrives_is_what_was_sent(
    device: str, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, so that buffers are filled again while they travel; of memory that is read only."""
    monkeypatch.setattr(staging, "STAGED", 1 << 16)
    way = Staging(torch.device(device))
    for seed in (0, 1):
        sent = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
        sent.flags.writeable = False
        arrived = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        way.send(bytes_at(sent.ctypes.data, nbytes), arrived)
        np.testing.assert_array_equal(arrived.cpu().numpy(), sent)
