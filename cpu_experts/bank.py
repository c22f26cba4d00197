"""ExpertBank: the gate, up and down matrices of one layer's experts."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cpu_experts.tensor import BadTensor, QuantTensor


class ExpertBank:
    """gate, up (E, inter, hidden) and down (E, hidden, inter); each has its own format.

    (rows, cols) tensors make a bank of one: a shared expert, or a dense layer. Raises BadTensor
    where shapes do not fit together.
    """

    def __init__(self, gate: QuantTensor, up: QuantTensor, down: QuantTensor) -> None:
        self.gate, self.up, self.down = gate, up, down
        self.n_experts, self.inter, self.hidden = gate.count, gate.rows, gate.cols
        wanted = (self.n_experts, self.inter, self.hidden)
        if (up.count, up.rows, up.cols) != wanted:
            raise BadTensor(f"up {up.shape} does not match gate {gate.shape}")
        if (down.count, down.cols, down.rows) != wanted:
            raise BadTensor(f"down {down.shape} does not match gate {gate.shape}")

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return self.gate.nbytes + self.up.nbytes + self.down.nbytes

    @cached_property
    def descriptor(self) -> np.ndarray:
        """int64 addresses of the descriptors of gate, up and down."""
        return np.array([w.address for w in (self.gate, self.up, self.down)], dtype=np.int64)

    @cached_property
    def address(self) -> int:
        """The address of `descriptor`."""
        return int(self.descriptor.ctypes.data)
