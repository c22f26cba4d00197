"""What a function enqueues on a GPU as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch


def captured(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`body`, run once, so that every kernel is loaded, then recorded; on the CPU itself."""
    if device.type != "cuda":
        return body
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        body()
    stream.synchronize()
    with torch.inference_mode(), torch.cuda.graph(graph, stream=stream):
        body()
    return graph.replay
