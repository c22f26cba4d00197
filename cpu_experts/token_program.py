"""Builds the program of a model's token: rows of activations, and the steps that fill them.

    x = program.row("x", hidden)
    program.embed(token_embd, token, x)
    program.norm(x, None, weight, eps, normed)
    program.product([Part(q, normed, queries), Part(k, normed, keys)])

A row is quantised where a step first needs it so, once for each form, and never again: make a new
`Row` for new contents, even at the same place. Linears take two int8 terms, experts one (see
`matmul`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from cpu_experts import grouped_attention, latent_attention, routing
from cpu_experts import program_steps as steps
from cpu_experts.activations import preparing
from cpu_experts.bank import ExpertBank
from cpu_experts.cache import c_function
from cpu_experts.cpu import tier
from cpu_experts.decode import block_bytes, few_item, run_bytes
from cpu_experts.formats import FLOAT
from cpu_experts.kernels.registry import DEQUANT, kernel_address
from cpu_experts.layout import row_stride
from cpu_experts.moe_job import (
    BLOCKS_DONE,
    DOWN,
    GATE,
    GATE_TABLE,
    GROUPS,
    H_FLOATS,
    H_STRIDE,
    H_TABLE,
    JOB_BYTES,
    N_GROUPS,
    OUT,
    PAIRS,
    PRODUCTS,
    ROWS_DONE,
    RUNS,
    SLOTS,
    TOKENS,
    UP,
    UP_TABLE,
    WEIGHTS,
    H,
)
from cpu_experts.pool import ITEM, get_threads
from cpu_experts.program import Program, runner
from cpu_experts.tensor import QuantTensor

_MOST_ROWS, _ROWS = 1024, 8  # of a run, and what its length is a multiple of
_LEAST_BYTES = 1 << 15  # of a run's weights
_ALONE_BYTES = 1 << 15  # of a product's weights: fewer are not worth another thread


@dataclass(frozen=True)
class Row:
    """`cols` float32 at an address, and the tables of its quantised forms so far."""

    name: str
    address: int
    cols: int
    forms: dict[tuple[int, int], int] = field(default_factory=dict)


class Part(NamedTuple):
    """One matrix of a product: `out = weight @ row + bias`."""

    weight: QuantTensor
    row: Row
    out: Row
    bias: np.ndarray | None = None


def bits(value: float) -> int:
    """A float64 as the int64 field of a job."""
    return int(np.float64(value).view(np.int64))


@cache
def code(step: Callable[..., None]) -> int:
    """The address of a step's function, compiled or loaded once."""
    return c_function(step, ITEM)


LATENT, GROUPED = "latent", "grouped"
_SHARED = (steps.embed, steps.norm, steps.add, steps.product, steps.begin_experts)
_OF_ATTENTION: dict[str, tuple[Callable[..., None], ...]] = {
    LATENT: (
        latent_attention.attend_latents,
        latent_attention.keep_latent,
        routing.route,
    ),
    GROUPED: (grouped_attention.attend_heads, grouped_attention.rotate_heads),
}


def codes(attention: Sequence[str]) -> dict[str, Callable[[], object]]:
    """What programs with these kinds of attention are compiled of: the steps of a warm-up."""
    chosen = [step for kind in attention for step in _OF_ATTENTION[kind]]
    named = {f"step {step.__name__}": partial(code, step) for step in (*chosen, *_SHARED)}
    return {**named, "program": runner}


class TokenProgram(Program):
    """A program with the steps that transformers share."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = get_threads()

    def row(self, name: str, cols: int) -> Row:
        """A row with new contents in the buffer of this name."""
        return Row(name, self.buffer(name, 4 * cols), cols)

    def step(self, function: Callable[..., None], *fields: int, items: int = 0) -> None:
        """Append a step with a job of these fields."""
        self.add(code(function), self.words(fields), items)

    def embed(self, weight: QuantTensor, token: int, out: Row) -> None:
        """The embedding of the token whose number lies at address `token`."""
        self.keep(weight)
        dequant = kernel_address(weight.format, DEQUANT, tier())
        self.step(steps.embed, weight.address, dequant, token, out.address)

    def norm(self, x: Row, add: Row | None, weight: np.ndarray, eps: float, out: Row) -> None:
        """RMSNorm of x into `out`; `add` is added to x first. weight float32 [cols]."""
        addend, gain = add.address if add else 0, self.array(weight)
        self.step(steps.norm, x.address, addend, gain, x.cols, bits(eps), out.address)

    def add_to(self, x: Row, add: Row) -> None:
        """x += add, in place."""
        self.step(steps.add, x.address, add.address, x.cols)

    def terms(self, weight: QuantTensor) -> int:
        """Rows that one input is to a linear's kernel: float activations are whole."""
        return 1 if weight.format.activation == FLOAT else 2

    def table(self, row: Row, weight: QuantTensor, terms: int) -> int:
        """The address of the table of `row` as `weight` reads it; a step makes it if it is new."""
        kind = weight.format.activation
        if (kind, terms) not in row.forms:
            row.forms[kind, terms] = self._make(row, kind, terms)
        return row.forms[kind, terms]

    def _make(self, row: Row, kind: int, terms: int) -> int:
        if kind == FLOAT:
            return self.words([row.address])
        name = f"{row.name} as {kind} x {terms}"
        rows = self.buffer(name, terms * row_stride(kind, row.cols))
        table = self.buffer(f"{name} table", 8 * terms)
        self.add(preparing(), self.words([kind, row.address, 1, row.cols, rows, table, terms]))
        return table

    def product(self, parts: Sequence[Part]) -> None:
        """Several matrices in one step: their inputs must be there before it."""
        fields: list[int] = []
        for weight, row, out, bias in parts:
            self.keep(weight)
            terms = self.terms(weight)
            table = self.table(row, weight, terms)
            at = self.array(bias) if bias is not None else 0
            fields += [weight.address, table, terms, out.address, at]
        runs = self._cut([part.weight for part in parts])
        for some in [runs] if len(runs) > len(parts) else [[run] for run in runs]:
            items = self.words([len(some)])
            self.step(steps.product, self.words(some), self.words(fields), items=items)

    def _cut(self, weights: Sequence[QuantTensor]) -> list[int]:
        """Runs of rows, a word each; they shrink as the work runs out, so that threads end
        together.
        """
        left = sum(weight.rows * weight.row_bytes for weight in weights)
        alone = self.threads == 1 or left < _ALONE_BYTES
        runs = []
        for part, weight in enumerate(weights):
            row = 0
            while row < weight.rows:
                share = left if alone else max(_LEAST_BYTES, left // (2 * self.threads))
                size = max(share // weight.row_bytes // _ROWS, 1) * _ROWS
                size = min(size, _MOST_ROWS if not alone else 1 << 15)
                if row + size + _ROWS > weight.rows:
                    size = weight.rows - row
                runs.append(part << 48 | size << 32 | row)
                row, left = row + size, left - size * weight.row_bytes
        return runs

    def experts(self, bank: ExpertBank, x: Row, ids: int, weights: int, k: int, out: Row) -> None:
        """The sum of `k` experts' answers; int32 ids and float32 weights lie at addresses."""
        self.keep(bank)
        inputs = [self.table(x, weight, 1) for weight in (bank.gate, bank.up)]
        stride = row_stride(bank.down.format.activation, bank.inter)
        h = self.buffer("h", k * stride)
        groups = [(0, pair, 1) for pair in range(k)]
        fields = {
            GATE: bank.gate.address,
            UP: bank.up.address,
            DOWN: bank.down.address,
            GROUPS: self.words([word for group in groups for word in group]),
            N_GROUPS: k,
            PAIRS: self.words([0] * k),
            GATE_TABLE: self.buffer("gate inputs", 8 * k),
            UP_TABLE: self.buffer("up inputs", 8 * k),
            H: h,
            H_STRIDE: stride,
            H_TABLE: self.words([h + pair * stride for pair in range(k)]),
            OUT: out.address,
            TOKENS: 1,
            WEIGHTS: weights,
            SLOTS: k,
            **self._few(k, bank.inter, bank.hidden),
        }
        values = [fields.get(i, 0) for i in range(JOB_BYTES // 8)]
        job, items = self.words(values), self.words([0])
        sizes = (bank.inter, bank.hidden, self.threads)
        self.step(steps.begin_experts, job, ids, k, items, *inputs, *sizes)
        self.add(code(few_item), job, items)

    def _few(self, k: int, inter: int, hidden: int) -> dict[int, int]:
        """Memory that a job of few tokens needs: see decode.py."""
        return {
            RUNS: self.buffer("runs", run_bytes(k, inter, hidden)),
            H_FLOATS: self.buffer("h floats", 4 * k * inter),
            BLOCKS_DONE: self.buffer("blocks done", k * block_bytes(inter)),
            PRODUCTS: self.buffer("products", 4 * k * hidden),
            ROWS_DONE: self.buffer("rows done", block_bytes(hidden)),
        }
