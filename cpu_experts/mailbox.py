"""A mailbox in memory: whoever can write memory, a GPU too, has the experts of a layer computed.

One resident thread, compiled and without the GIL, polls the ticket word, runs `moe` with the worker
pool and publishes `done`. No Python runs between a ticket and its answer. Words are int64, each on
lines of its own:

    TICKET   written last by the asker, one more than the ticket before
    DONE     the ticket that is answered: OUT is complete (or ERROR says why not)
    ABORT    not 0: both sides give up; the thread ends
    ERROR    0, or a number of ERRORS; stays until the asker clears it
    LAYER, TOKENS   which bank, how many tokens

and behind them int32 ids [tokens, top_k], float32 weights [tokens, top_k], x [tokens, hidden] and
out [tokens, hidden] at `offsets`. A negative id is skipped. The thread spins between the tickets of
a token and sleeps after `rest`; a write to memory cannot wake it, only `resume` can.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import types

from cpu_experts import cpu
from cpu_experts.bank import ExpertBank
from cpu_experts.cache import entry, inner
from cpu_experts.matmul import FEW_TOKENS
from cpu_experts.memory import atomic_load, atomic_store, load_i64
from cpu_experts.moe import compiled, moe, workspace_bytes
from cpu_experts.pool import (
    FUTEX_NUMBERS,
    FUTEX_WAIT,
    FUTEX_WAKE,
    SCRATCH_BYTES,
    relax,
    running_pool,
    set_hot,
    syscall,
)

TICKET, DONE, ABORT, ERROR, LAYER, TOKENS, DATA = 0, 128, 256, 384, 512, 520, 640
BAD_LAYER, BAD_TOKENS, BAD_ID, BAD_TICKET, ABORTED = range(1, 6)
ERRORS = {
    BAD_LAYER: "the layer has no experts here",
    BAD_TOKENS: "the number of tokens is not between 1 and the mailbox's most",
    BAD_ID: "an expert id is beyond the layer's experts",
    BAD_TICKET: "the ticket does not follow the one before",
    ABORTED: "the mailbox was told to give up",
}
# The thread's own words, beside the mailbox: what it is told, then what it never changes.
_STOP, _AWAKE = 0, 128
(
    _CONTROL,
    _BANKS,
    _LAYERS,
    _TOP_K,
    _MAX_TOKENS,
    _IDS,
    _WEIGHTS,
    _X,
    _OUT,
    _WORK,
    _SCRATCH,
    _POOL,
    _CODES,
    _FUTEX,
) = range(256, 368, 8)
_STATE_BYTES = 384
_ROUNDS = 4096  # looks at DONE between two looks at the clock


class MailboxError(ValueError):
    """The mailbox refused a ticket, was aborted, did not answer, or cannot start."""


@inner
def _answer(state, control, rehearsal):
    """Compute what the mailbox asks for; 0 or the number of an error. `rehearsal`: see `moe`."""
    layer, tokens = load_i64(control + LAYER), load_i64(control + TOKENS)
    if layer < 0 or layer >= load_i64(state + _LAYERS):
        return BAD_LAYER
    bank = load_i64(load_i64(state + _BANKS) + 8 * layer)
    if bank == 0:
        return BAD_LAYER
    if tokens < 1 or tokens > load_i64(state + _MAX_TOKENS):
        return BAD_TOKENS
    failed = moe(
        tokens,
        load_i64(state + _TOP_K),
        load_i64(state + _X),
        load_i64(state + _IDS),
        load_i64(state + _WEIGHTS),
        load_i64(state + _OUT),
        bank,
        0,
        0,
        load_i64(state + _WORK),
        load_i64(state + _SCRATCH),
        load_i64(state + _POOL),
        load_i64(state + _CODES),
        rehearsal,
    )
    return BAD_ID if failed else 0


def _serve(state):
    """The thread's whole life."""
    control, pool = load_i64(state + _CONTROL), load_i64(state + _POOL)
    done, waited, hot, cold = atomic_load(control + DONE), 0, False, False
    while atomic_load(state + _STOP) == 0 and atomic_load(control + ABORT) == 0:
        awake = atomic_load(state + _AWAKE) != 0
        if awake != hot:
            set_hot(pool, 1 if awake else -1)
            hot = awake
        ticket = atomic_load(control + TICKET)
        if ticket != done:
            error = _answer(state, control, 0) if ticket == done + 1 else BAD_TICKET
            if error:
                atomic_store(control + ERROR, error)
            done, waited, cold = ticket, 0, load_i64(control + TOKENS) <= FEW_TOKENS
            atomic_store(control + DONE, done)
        elif cold:
            cold = False  # weights have driven all else out of the near caches, this code too
            _answer(state, control, 1)
        elif awake:
            waited = relax(waited)
        else:
            # Returns at once where `resume` or `stop` came in between.
            syscall(load_i64(state + _FUTEX), state + _AWAKE, FUTEX_WAIT, 0, 0, 0, 0)
    if hot:
        set_hot(pool, -1)
    if atomic_load(control + ABORT) != 0:
        atomic_store(control + ERROR, ABORTED)


def _tell(state, word, value):
    """Set one of the thread's words; wake it if that was `_AWAKE`."""
    atomic_store(state + word, value)
    if word == _AWAKE and value != 0:
        syscall(load_i64(state + _FUTEX), state + _AWAKE, FUTEX_WAKE, 1, 0, 0, 0)


def _publish(control, ticket):
    atomic_store(control + TICKET, ticket)


def _look(control, ticket, rounds):
    """Wait for an answer, for so many looks; True when it is there."""
    waited = 0
    while atomic_load(control + DONE) != ticket:
        if waited >= rounds or atomic_load(control + ABORT) != 0:
            return False
        waited = relax(waited)
    return True


_VOID = {n: types.void(*[types.int64] * n) for n in (1, 2, 3)}


@cache
def code() -> tuple[Any, ...]:
    """The thread, what tells it, and an asker's two functions, compiled or loaded once."""
    looked = types.boolean(*[types.int64] * 3)
    kinds = ((_serve, _VOID[1]), (_tell, _VOID[3]), (_publish, _VOID[2]), (_look, looked))
    return tuple(entry(*kind) for kind in kinds)


def _lines(size: int) -> int:
    return (size + 127) // 128 * 128


_LOCK = threading.Lock()
_running: Mailbox | None = None


class Mailbox:
    """Serves `banks[layer]` (None: a layer without experts) to whoever writes its memory.

    `memory`: uint8, at least `Mailbox.size(...)` bytes, at a multiple of 128 (pinned memory that a
    GPU sees, say); made here where it is not given. MailboxError where a bank has another hidden
    size, or memory does not suit.
    """

    def __init__(
        self,
        banks: Sequence[ExpertBank | None],
        hidden: int,
        top_k: int,
        max_tokens: int,
        memory: np.ndarray | None = None,
    ) -> None:
        if sys.platform != "linux" or platform.machine() not in FUTEX_NUMBERS:
            raise MailboxError("a mailbox needs Linux on x86-64 or ARM")
        for layer, bank in enumerate(banks):
            if bank is not None and bank.hidden != hidden:
                raise MailboxError(f"layer {layer} has hidden size {bank.hidden}, not {hidden}")
        self.banks, self.hidden = tuple(banks), hidden
        self.top_k, self.max_tokens = top_k, max_tokens
        size = self.size(hidden, top_k, max_tokens)
        if memory is None:
            self._own = np.zeros(size + 128, dtype=np.uint8)
            memory = self._own[-int(self._own.ctypes.data) % 128 :]
        if memory.nbytes < size or memory.ctypes.data % 128 or memory.dtype != np.uint8:
            raise MailboxError(f"a mailbox needs {size} uint8 at a multiple of 128")
        memory[:size] = 0
        self.memory, self.address = memory, int(memory.ctypes.data)
        self.offsets = self._offsets(hidden, top_k, max_tokens)
        self._thread: threading.Thread | None = None
        self._table = np.array([0 if bank is None else bank.address for bank in banks])
        self._state = np.zeros(_STATE_BYTES // 8 + 16, dtype=np.int64)
        self._state_address = _lines(int(self._state.ctypes.data))
        needed = [  # few tokens may need more than many: they are one job
            workspace_bytes(bank, tokens, tokens * top_k, True)
            for bank in banks
            if bank is not None
            for tokens in range(1, max_tokens + 1)
        ]
        self._work = np.zeros(max(needed, default=0) + SCRATCH_BYTES + 128, dtype=np.uint8)

    @staticmethod
    def _offsets(hidden: int, top_k: int, max_tokens: int) -> tuple[int, int, int, int]:
        weights = DATA + _lines(4 * top_k * max_tokens)
        x = weights + _lines(4 * top_k * max_tokens)
        return DATA, weights, x, x + _lines(4 * hidden * max_tokens)

    @staticmethod
    def size(hidden: int, top_k: int, max_tokens: int) -> int:
        """Bytes of a mailbox's memory."""
        return Mailbox._offsets(hidden, top_k, max_tokens)[3] + _lines(4 * hidden * max_tokens)

    def word(self, offset: int) -> int:
        """The value of a word now."""
        return int(self.memory[offset : offset + 8].view(np.int64)[0])

    def _write(self, offset: int, values: np.ndarray) -> None:
        self.memory[offset : offset + values.nbytes] = values.reshape(-1).view(np.uint8)

    def start(self) -> None:
        """Start the thread, awake, with the ticket, abort and error words as new.

        MailboxError while another mailbox runs: they would share one worker pool.
        """
        global _running
        with _LOCK:
            if _running is not None:
                raise MailboxError("a mailbox is running already; stop it first")
            self._pool = running_pool()
            scratch = _lines(int(self._work.ctypes.data))
            fields = (
                self.address,
                int(self._table.ctypes.data),
                len(self.banks),
                self.top_k,
                self.max_tokens,
                *(self.address + offset for offset in self.offsets),
                scratch + SCRATCH_BYTES,
                scratch,
                self._pool.address if self._pool else 0,
                compiled()[2],
                FUTEX_NUMBERS[platform.machine()],
            )
            first = (self._state_address - int(self._state.ctypes.data) + _CONTROL) // 8
            self._state[first : first + len(fields)] = fields
            self.memory[:DATA] = 0
            _, tell, _, _ = code()
            tell(self._state_address, _STOP, 0)
            tell(self._state_address, _AWAKE, 1)
            self._thread = threading.Thread(target=self._live, name="cpu_experts-mailbox")
            self._thread.daemon = True
            self._thread.start()
            _running = self

    def _live(self) -> None:
        cores = cpu.physical_cores()
        if self._pool is not None and self._pool.threads <= len(cores):
            os.sched_setaffinity(0, cores[:1])  # the pool's workers have the others
        code()[0](self._state_address)

    def rest(self) -> None:
        """Let the thread and the pool sleep: no ticket will come before `resume`."""
        code()[1](self._state_address, _AWAKE, 0)

    def resume(self) -> None:
        """Wake the thread and the pool, before the first ticket of a token."""
        code()[1](self._state_address, _AWAKE, 1)

    def stop(self) -> None:
        """End the thread after the ticket that it is at; stopping twice does nothing."""
        global _running
        if self._thread is None:
            return
        tell = code()[1]
        tell(self._state_address, _STOP, 1)
        tell(self._state_address, _AWAKE, 1)
        self._thread.join()
        with _LOCK:
            self._thread = None
            _running = None

    def abort(self) -> None:
        """Set the abort word, as either side may; `stop` and `start` begin anew."""
        self._write(ABORT, np.ones(1, dtype=np.int64))

    def submit(self, layer: int, ids: np.ndarray, weights: np.ndarray, x: np.ndarray) -> int:
        """Do as a GPU does: write ids int32, weights and x float32, and publish the ticket.

        ids and weights [tokens, top_k], x [tokens, hidden]. Returns the ticket.
        """
        ticket = self.word(DONE) + 1
        self._write(LAYER, np.array([layer, len(ids)], dtype=np.int64))
        if len(ids) <= self.max_tokens:
            at_ids, at_weights, at_x, _ = self.offsets
            self._write(at_ids, np.ascontiguousarray(ids, dtype=np.int32))
            self._write(at_weights, np.ascontiguousarray(weights, dtype=np.float32))
            self._write(at_x, np.ascontiguousarray(x, dtype=np.float32))
        code()[2](self.address, ticket)
        return ticket

    def wait(self, ticket: int, seconds: float = 1.0) -> np.ndarray:
        """The answer to a ticket, float32 [tokens, hidden]. MailboxError instead of waiting on."""
        look, end = code()[3], time.monotonic() + seconds
        while not look(self.address, ticket, _ROUNDS):
            if self.word(ABORT):
                raise MailboxError(ERRORS[ABORTED])
            if time.monotonic() > end:
                raise MailboxError(f"no answer to ticket {ticket} within {seconds:g} s")
        error, tokens = self.word(ERROR), self.word(TOKENS)
        if error:
            self._write(ERROR, np.zeros(1, dtype=np.int64))
            raise MailboxError(ERRORS[error])
        out, size = self.offsets[3], 4 * tokens * self.hidden
        values = self.memory[out : out + size].view(np.float32)
        return values.reshape(tokens, self.hidden).copy()


def _stop_running() -> None:
    if _running is not None:
        _running.stop()


atexit.register(_stop_running)
