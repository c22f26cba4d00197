"""What a GPU fails at while a model runs, in words for its user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from localr1.errors import DoesNotFit, LocalR1Error
from localr1.gpu.driver import GpuError


@contextmanager
def told() -> Iterator[None]:
    """What the GPU fails at inside becomes an error with a sentence and a way out.

    Raises DoesNotFit where its memory is too small, LocalR1Error for all else that it, its driver
    or the compiler refuse. Other errors are bugs and pass.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory() from error
    except RuntimeError as error:
        if not isinstance(error, GpuError) and "CUDA" not in str(error):
            raise
        problem = str(error).partition("\n")[0]  # torch adds lines of advice for programmers
        hint = "start again; --device cpu runs without the GPU, localr1 doctor looks at it"
        raise LocalR1Error(f"the GPU failed: {problem}", hint) from error


def out_of_memory() -> DoesNotFit:
    """What to say when the current GPU's memory is too small."""
    free = torch.cuda.mem_get_info()[0] / (1 << 30)
    hint = "close what uses it, or take a smaller --context, --vram or --device cpu"
    return DoesNotFit(f"the GPU ran out of memory; {free:.1f} GiB is free", hint)
