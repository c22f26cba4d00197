"""What a device brings so that `Transformer` can run on it.

A part gets the normed hidden states `[T, hidden]` and the residual stream `x` `[T, hidden]`. It
either adds its answer to `x` and returns None, or returns the answer for the next norm to add:
whichever costs its device less.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from cpu_experts import ExpertBank, QuantTensor
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Weights


class Norm(Protocol):
    """RMSNorm: `add` is summed into `x` first, in place. The answer has the form that the device's
    parts take.
    """

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> Any: ...


class Attention(Protocol):
    """One layer's attention over the cache, to which it adds the tokens."""

    def __call__(self, normed: Any, x: torch.Tensor, cache: KVCache) -> torch.Tensor | None: ...


class FeedForward(Protocol):
    """A SwiGLU feed-forward; `normed` is `Parts.activations` of the normed hidden states, or they
    themselves.
    """

    def __call__(self, normed: Any, x: torch.Tensor) -> torch.Tensor | Routed | None: ...


class Gate(Protocol):
    """Normed hidden states -> expert ids int32 `[T, k]` and weights float32 `[T, k]`."""

    def __call__(self, normed: Any) -> tuple[torch.Tensor, torch.Tensor]: ...


@runtime_checkable
class Routed(Protocol):
    """Experts at work."""

    def wait(self) -> torch.Tensor:
        """Their weighted sum, `[T, hidden]`. Asked for once: then others take their memory."""
        ...


class Experts(Protocol):
    """Routed experts: `y[t] = sum_j weights[t, j] * FFN[ids[t, j]](x[t])`."""

    def start(self, normed: Any, ids: torch.Tensor, weights: torch.Tensor) -> Routed: ...


class Linear(Protocol):
    """`y = x @ weight.T`."""

    def __call__(self, x: Any) -> torch.Tensor: ...


class Embedding(Protocol):
    """Token ids -> float32 `[len(ids), hidden]`, in RAM or on the device."""

    def __call__(self, ids: list[int]) -> torch.Tensor: ...


class Parts(Protocol):
    """Makes a device's parts out of weights."""

    def of_layer(self, layer: int) -> Parts:
        """What makes the parts of this layer: the first ones may lie elsewhere than the rest."""
        ...

    def linear(self, weight: QuantTensor) -> Linear: ...

    def embedding(self, weight: QuantTensor, head: Any) -> Embedding:
        """`head` is the part that was made of the same weight, or None."""
        ...

    def norm(self, weight: QuantTensor, eps: float) -> Norm: ...

    def attention(self, config: Config, weights: Weights, layer: int) -> Attention: ...

    def gate(self, config: ModelConfig, weights: Weights, prefix: str) -> Gate: ...

    def experts(self, layer: int, bank: ExpertBank) -> Experts: ...

    def mlp(self, bank: ExpertBank, layer: int | None = None) -> FeedForward:
        """`layer`: of a dense FFN, which may lie elsewhere than the layer's attention; None: of the
        shared expert, which does not.
        """
        ...

    def new_cache(self, context: int) -> KVCache: ...

    def hidden(self, rows: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Tokens `[T, hidden]` that come to the device, float32, as a residual stream there:
        embedded ones, or what the layers before made of them. They come behind the cache's
        committed ones.
        """
        ...

    def activations(self, normed: Any) -> Any:
        """The form in which several feed-forwards share one input."""
        ...
