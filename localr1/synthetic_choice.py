"""Experts chosen by chance, for every layer and token, in the place of a router's choice.

A router of random weights would often choose the same ones. The router still does its work: what it
chooses is not listened to. Not here: the model that asks these experts (synthetic_run.py).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from cpu_experts import ExpertBank
from cpu_experts.token_program import Row
from localr1.engine.cpu_graph import CpuGraph
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.experts import MLP, Answer
from localr1.models.gate import Gate
from localr1.models.kv_cache import KVCache
from localr1.models.parts import Experts, Routed
from localr1.models.transformer import Transformer


class Choices:
    """Random ids of experts for each layer, at addresses that stay: a graph reads them there.

    While `silent`, the experts of these choices are not asked: their answer is `nothing`.
    """

    def __init__(self, config: Config, device: torch.device | str) -> None:
        self.n_layers, self.device, self.silent = config.n_layers, device, False
        self.nothing = torch.zeros(1, config.hidden_size, device=device)
        self.n_experts, self.top_k = 1, 1  # a dense FFN is the only expert of its layer
        if isinstance(config, ModelConfig):
            self.n_experts, self.top_k = config.n_routed_experts, config.n_experts_per_tok
        self._rng = np.random.default_rng(0)
        self._tables: dict[int, torch.Tensor] = {}
        self._places: list[tuple[int, np.ndarray, object]] = []

    def random(self, n_tokens: int) -> torch.Tensor:
        """int32 `[layers, T, k]` in RAM, no expert twice for a token."""
        shape = n_tokens, self.n_experts
        layers = []
        for _ in range(self.n_layers):
            order = self._rng.random(shape, np.float32).argpartition(self.top_k - 1, axis=1)
            layers.append(order[:, : self.top_k].astype(np.int32))
        return torch.from_numpy(np.stack(layers))

    def draw(self, n_tokens: int = 1, stub: bool = False) -> None:
        """New experts for the next `n_tokens` tokens; with `stub` none, so that nothing is read."""
        ids = self.random(n_tokens)
        if n_tokens == 1:
            for layer, place, _ in self._places:
                place[:] = ids[layer, 0]
        if stub:
            ids.fill_(-1)
        if n_tokens in self._tables:
            self._tables[n_tokens].copy_(ids)
        else:
            self._tables[n_tokens] = ids.to(self.device)

    def of(self, layer: int, n_tokens: int) -> torch.Tensor:
        """What was drawn last for so many tokens, int32 `[T, k]`."""
        return self._tables[n_tokens][layer]

    def write_to(self, layer: int, place: np.ndarray, owner: object) -> None:
        """From now on write what is drawn for one token of `layer` there too: int32 `[k]`.

        It lies in memory that lives as long as `owner`.
        """
        self._places.append((layer, place, owner))


class Chosen:
    """A layer's experts, or its FFN in RAM, with the choice made by `Choices`."""

    def __init__(self, experts: Experts, bank: ExpertBank, choices: Choices, layer: int) -> None:
        self.experts, self.bank, self.choices, self.layer = experts, bank, choices, layer

    def start(self, normed: Any, ids: torch.Tensor, weights: torch.Tensor) -> Routed:
        if self.choices.silent:
            return Answer(self.choices.nothing[: len(ids)])
        return self.experts.start(normed, self.choices.of(self.layer, len(ids)), weights)


class ChosenToken(CpuGraph):
    """The engine's compiled token with the experts of `choices`, or with None without routed ones.

    Its routers write where nobody reads.
    """

    def __init__(self, model: Transformer, cache: KVCache, choices: Choices | None) -> None:
        self._choices, self._layer = choices, 0
        super().__init__(model, cache)

    def _feed_forward(self, ffn: Any, normed: Row) -> Row:
        if isinstance(ffn, MLP):
            return super()._feed_forward(ffn, normed)
        self._layer = ffn.experts.layer
        if self._choices is not None:
            return super()._feed_forward(ffn, normed)
        k = ffn.gate.config.n_experts_per_tok
        self._route(ffn.gate, normed, 0, self._program.array(np.zeros(k, np.float32)))
        if ffn.shared is not None:
            return super()._feed_forward(ffn.shared, normed)
        return Row("nothing", self._program.array(np.zeros(normed.cols, np.float32)), normed.cols)

    def _route(self, gate: Gate, normed: Row, ids: int, weights: int) -> None:
        k = gate.config.n_experts_per_tok
        if self._choices is not None:
            place = np.ctypeslib.as_array((ctypes.c_int32 * k).from_address(ids))
            self._choices.write_to(self._layer, place, self._program)
        super()._route(gate, normed, self._program.array(np.zeros(k, np.int32)), weights)
