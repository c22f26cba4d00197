"""Every kernel that a model needs on a GPU: what a first start compiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localr1.gpu import (
    activation,
    activations,
    cache_rows,
    combine,
    embedding,
    gqa,
    gqa_prefill,
    gqa_rope,
    linear_configurations,
    mailbox,
    mla,
    mla_prefill,
    norm,
    rope,
    router,
    sampling,
)
from localr1.gpu.launch import Configuration
from localr1.gpu.sizes import AnySizes, GroupedSizes


def kernels(
    arch: int,
    sizes: AnySizes,
    formats: Iterable[str],
    experts: Iterable[str],
    embedded: Iterable[str] = (),
    streamed: Iterable[str] = (),
    *,
    eight_bit: bool = False,
) -> Iterator[Configuration]:
    """For a model of `sizes` whose weights on the GPU have `formats`; those of routed experts that
    lie there too `experts`, of those that come there for prompts `streamed`, and an embedding that
    the GPU reads `embedded`; with a cache of 8 bits a value or of 16.
    """
    yield from linear_configurations.configurations(arch, sizes, formats, tokens=(1,))
    for module in (activation, activations, mailbox, norm, sampling):
        yield from module.configurations(arch, sizes)
    yield from embedding.configurations(arch, embedded)
    if isinstance(sizes, GroupedSizes):
        for module in (gqa, gqa_prefill, gqa_rope):
            yield from of_cache(module.configurations(arch, sizes), eight_bit)
        return
    yield from linear_configurations.chosen(arch, sizes, experts)
    yield from linear_configurations.grouped(arch, {*experts, *streamed})
    yield from combine.configurations(arch, sizes)
    for module in (cache_rows, mla, mla_prefill, rope, router):
        yield from of_cache(module.configurations(arch, sizes), eight_bit)


def of_cache(every: Iterable[Configuration], eight_bit: bool) -> Iterator[Configuration]:
    """Those that take such a cache's scales, or their absence, or neither."""
    for configuration in every:
        takes = "scales" in configuration.fn.arg_names
        if not takes or ("scales" in configuration.signature) == eight_bit:
            yield configuration
