"""What would help a plan that is short of VRAM. Not here: how a plan is found (offload.planner)."""

from __future__ import annotations

from collections.abc import Sequence

from offload.hardware import Hardware
from offload.placement import Demands, Placement, Weight
from offload.planner import plan


def in_8_bits(
    weights: Sequence[Weight], hardware: Hardware, demands: Demands, found: Placement
) -> Placement | None:
    """The plan with a GPU's cache in 8 bits a value, where that gives the GPU what `found` had no
    room for: more of the context, or more of the layers. None where it does not.
    """
    smaller = demands.in_8_bits()
    served = found.gpu and not found.cpu_layers and found.context == found.asked_context
    if served or not hardware.gpus or smaller == demands:
        return None
    other = plan(weights, hardware, found.asked_context, smaller)
    layers = not found.gpu or other.cpu_layers < found.cpu_layers
    more = other.context > found.context or (layers and other.context == found.context)
    return other if other.gpu and more else None
