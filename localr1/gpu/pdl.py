"""Programmatic dependent launch: a kernel starts while the one before it still ends.

On compute capability 9.0 and more the programs of a kernel with a PDL constant take the places that
the kernel in front leaves free, and `start` holds them until it has ended, all its stores visible:
what lies between two kernels is hidden. In front of `start` a kernel may read what none writes, so
weights. Since every one of them waits, the kernels further in front have ended too. launch.py fills
in PDL, and tells the driver; a kernel without it starts when all is done, as ever.

A product with many programs lets the next kernel in behind its own wait. A kernel with few, of
which one would mostly see the gaps, is a `relay`: the product behind it comes in at once, and has
asked for its weights when its turn is there.
"""

from __future__ import annotations

import triton
import triton.language as tl
import triton.language.extra.cuda as cuda

ARCHITECTURE = 90  # the first that can


@triton.jit
def hold(PDL: tl.constexpr):
    """Until the kernel in front has ended."""
    if PDL:
        cuda.gdc_wait()


@triton.jit
def let_in(PDL: tl.constexpr):
    """The next kernel may take free places."""
    if PDL:
        cuda.gdc_launch_dependents()


@triton.jit
def start(PDL: tl.constexpr):
    """Hold until the kernel in front has ended, then let the next one take free places."""
    hold(PDL)
    let_in(PDL)


@triton.jit
def relay(PDL: tl.constexpr):
    """As `start`, but let the next kernel in first."""
    let_in(PDL)
    hold(PDL)
