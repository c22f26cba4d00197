"""From a plan with a GPU in it to a runner: compile the kernels, bring the weights up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from localr1.engine.gpu_runner import GpuRunner
from localr1.errors import Unsupported
from localr1.events import Progress
from localr1.gpu.driver import GpuError
from localr1.gpu.failures import out_of_memory
from localr1.gpu.kernels import kernels
from localr1.gpu.launch import architecture
from localr1.gpu.warmup import warmup
from localr1.models import cache_layout, inventory
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.gpu import GpuParts, lies_whole
from localr1.models.linear import Weights
from localr1.models.transformer import Transformer
from offload.placement import Kind, Placement, Tier

Report = Callable[[Progress], None]


def gpu_runner(
    config: Config, weights: Weights, found: Placement, index: int, cache: str, owned: bool,
    report: Report,
) -> GpuRunner:  # fmt: skip
    """The model where `found` places it, its GPU being number `index`; `cache` is one of
    cache_layout.CACHES. `owned`: what stays in RAM lies in memory of ours, not in a file's.

    Raises DoesNotFit where somebody else took the memory meanwhile, Unsupported where kernels do
    not compile or run.
    """
    torch.cuda.set_device(index)
    on_gpu = [name for name, tier in found.tiers.items() if tier is Tier.GPU and name in weights]
    try:
        formats = formats_of(config, weights, on_gpu, found.streams_from is not None)
        compile_kernels(config, formats, index, cache, report)
        uploaded = set(Kind) - {Kind.ROUTER}  # which comes otherwise, and is little
        total = sum(item.nbytes for item in found.gpu if item.name in uploaded)
        with torch.inference_mode():
            parts = GpuParts(
                config, found.context, f"cuda:{index}", set(on_gpu).__contains__,
                sent(report, total), cache,
            )  # fmt: skip
            model = Transformer(config, weights, found.context, parts)
            if found.streams_from is not None:
                for done, total in parts.stage.open_streaming(found.streams_from, owned):
                    report(Progress("Showing experts to the GPU", done, total, "bytes"))
        return GpuRunner(model, parts, found.context)
    except torch.OutOfMemoryError as error:
        raise out_of_memory() from error
    except GpuError as error:
        raise Unsupported(str(error), "--device cpu runs without the GPU") from error


def compile_kernels(
    config: Config, formats: tuple[set[str], ...], index: int, cache: str, report: Report
) -> None:
    """Compile the kernels that the disk lacks, on all cores; `formats` as `formats_of` gives them.
    GpuError names one that does not compile.
    """
    arch = architecture(index)
    wanted = kernels(arch, config, *formats, eight_bit=cache == cache_layout.IN_8_BITS)
    for done, total in warmup(wanted, arch):
        if total:
            report(Progress("Compiling GPU kernels, first run only", done, total, "kernels"))


def formats_of(
    config: Config, weights: Weights, on_gpu: Iterable[str], streams: bool
) -> tuple[set[str], ...]:
    """The formats that matrices among these weights have on a GPU: outside the routed experts,
    theirs, the embedding's if the GPU reads that, and those of experts that it `streams` from RAM.
    Norms, biases and routers have kernels of their own.
    """
    others, experts, embedded, streamed = set[str](), set[str](), set[str](), set[str]()
    names = set(on_gpu)
    if streams and isinstance(config, ModelConfig):
        streamed |= {weights[name].format.name for name in _routed(config) if name not in names}
    if lies_whole(config, names.__contains__):
        embedded.add(weights["token_embd.weight"].format.name)
    for name in names:
        weight = weights[name]
        if len(weight.shape) < 2 or name.endswith("ffn_gate_inp.weight"):
            continue
        found = weight.format.name
        (experts if "_exps." in name else others).add(found)
        if name.endswith("attn_kv_b.weight") and isinstance(config, ModelConfig):
            others.add(inventory.keys_on_gpu(found, config))
    return others, experts, embedded, streamed


def _routed(config: ModelConfig) -> Iterator[str]:
    """The names of the routed experts."""
    for layer in range(config.n_dense_layers, config.n_layers):
        yield from (f"blk.{layer}.ffn_{matrix}_exps.weight" for matrix in ("gate", "up", "down"))


def sent(report: Report, total: int) -> Callable[[int], None]:
    """`report` for an upload of about `total` bytes, told of each piece of it."""
    done = 0

    def more(piece: int) -> None:
        nonlocal done
        done += piece
        report(Progress("Loading to the GPU", min(done, total), total, "bytes"))

    return more
