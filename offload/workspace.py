"""What a plan takes of memory besides weights and cache.

Measured: the program on the CPU (docs/placement.md). The GPU's figures are for torch's CUDA build
on cards of 24 to 80 GB.
"""

from __future__ import annotations

from offload.hardware import Gpu
from offload.placement import Demands

_MIB = 1 << 20

PROGRAM = 380 * _MIB  # Python, torch, compiled kernels
PROGRAM_WITH_GPU = 1024 * _MIB  # CUDA's libraries too
# With the kernels' code and stacks: 0.67 GiB on an H100, some of which other items leave over.
CUDA_CONTEXT = 576 * _MIB
GPU_WORKSPACE = 320 * _MIB
_ABSORBED = 192  # prompts up to about this long take the form of attention that decoding takes
_SCORE, _MOST_SCORES = 9, 1 << 24  # bytes of a score with its softmax and mask; scores at a time


def gpu_margin(gpu: Gpu) -> int:
    """VRAM left alone: allocators round up, and a desktop grows."""
    return max(256 * _MIB, gpu.total // 32)


def ram_margin(room: int) -> int:
    """RAM left alone for the system and for what changes between planning and loading."""
    return 64 * _MIB + room // 100


def ram_workspace(
    demands: Demands, tokens: int, attention: bool, asked: bool, streams: int | None
) -> int:
    """Bytes for a prompt of `tokens`: where the CPU attends, and where it is `asked` by a GPU for
    experts or FFNs, whose pinned memory stays, if not for prompts of `streams` or more.
    """
    asking = demands.prompt_beside_gpu(tokens) if asked else 0
    if asked and streams is not None:
        few = demands.prompt_beside_gpu(min(tokens, streams))
        asking = max(few, demands.embedded_per_token * tokens)
    if not attention:
        return asking
    expanded = demands.ram_per_token * tokens + _SCORE * min(tokens * tokens, _MOST_SCORES)
    return asking + max(expanded, demands.absorbed_per_token * min(tokens, _ABSORBED))
