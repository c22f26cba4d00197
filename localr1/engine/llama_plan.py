"""What a model asks of memory under llama.cpp, and how many whole layers its GPUs get.

For every architecture that llama.cpp knows: sizes come from the tensor table, the cache's from the
metadata keys that they all share. Whole layers, because llama.cpp splits a model between layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from localr1.models.fields import Fields, require
from localr1.models.gguf import GGUFFile
from offload.hardware import on_paper
from offload.placement import Demands, Item, Kind, Placement, Tier, Weight
from offload.planner import plan

# Tokens of a prompt that are computed at once. On a CPU more are not quicker, and every one takes
# a row of scores; a GPU keeps none (flash attention).
CPU_BATCH, GPU_BATCH = 128, 512
_IN_LAYER = re.compile(r"blk\.\d{1,6}\.")
_MIB = 1 << 20
_GPU_BUFFERS = 192 * _MIB  # beside what our own engine takes for any model
_GRAPH = 64 * _MIB  # intermediate values of a batch but its logits and scores


class LlamaModel:
    """A file's sizes, as llama.cpp will see them. Bytes, and tokens."""

    def __init__(self, source: GGUFFile) -> None:
        fields = Fields(source.metadata, "the GGUF metadata", f"{_architecture(source)}.")
        self.n_layers = fields.integer("block_count")
        require(0 < self.n_layers <= len(source.tensors), f"it has {self.n_layers} layers")
        self.max_context = fields.integer("context_length")
        self.weights = tuple(_weights(source))
        embedding = source.tensors.get("token_embd.weight")
        self.vocab_size = embedding.shape[0] if embedding else 0
        self.heads = _most(fields.get("attention.head_count"))
        self.cache_bytes = 2 * _cache_values(source, fields)  # of a token in one layer; float16

    def whole_layers(self, vram: int, context: int) -> int:
        """Layers for the GPU, as llama.cpp counts: the head is one, then from the last one down."""
        left = vram - max(256 * _MIB, vram // 32) - self._buffers(GPU_BATCH)
        cache = self.cache_bytes * context
        layers = [self._size(layer) + cache for layer in reversed(range(self.n_layers))]
        sizes = [self._size(-1), *layers]
        for count, nbytes in enumerate(sizes):
            left -= nbytes
            if left < 0:
                return count
        return len(sizes)

    def _size(self, layer: int) -> int:
        """Bytes of a layer's weights; of the head's for -1, which may be the embedding again."""
        tied = layer < 0 and all(weight.name != "output.weight" for weight in self.weights)
        return sum(
            weight.nbytes
            for weight in self.weights
            if weight.layer == layer and (tied or weight.kind != Kind.EMBEDDING)
        )

    def placement(self, context: int, ram: int, vram: int) -> tuple[Placement, int]:
        """The plan for what is free, and its layers on the GPU; a shorter context if need be."""
        layers = self.whole_layers(vram, context)
        first = self.n_layers + 1 - layers
        on_gpu = {w.name for w in self.weights if w.layer >= first or (layers and _is_head(w))}
        kept = [weight for weight in self.weights if weight.name not in on_gpu]
        demands = self._demands(min(first, self.n_layers), scores=not layers)
        buffers = self._buffers(GPU_BATCH if layers else CPU_BATCH)
        found = plan(kept, on_paper(vram=None, ram=max(0, ram - buffers)), context, demands)
        if not layers:
            own = (*found.ram, Item("buffers", buffers))
            return replace(found, ram=own, ram_room=ram), 0
        cache = self.cache_bytes * (self.n_layers - demands.n_layers) * found.context
        moved = sum(weight.nbytes for weight in self.weights if weight.name in on_gpu)
        gpu = (Item("whole layers", moved), Item("KV cache", cache), Item("buffers", buffers))
        tiers = {**found.tiers, **dict.fromkeys(on_gpu, Tier.GPU)}
        return replace(found, tiers=tiers, gpu=gpu, gpu_room=vram, ram_room=ram), layers

    def _buffers(self, batch: int) -> int:
        """What is computed in besides scores: the logits of a batch, and the rest roundly."""
        return 4 * batch * self.vocab_size + _GRAPH

    def _demands(self, n_layers: int, scores: bool) -> Demands:
        """`scores`: those of a batch with all tokens are kept, and a mask."""
        return Demands(
            n_layers=n_layers,
            cache_name="KV cache",
            cache_gpu=self.cache_bytes,
            cache_gpu_8bit=self.cache_bytes,
            cache_ram=self.cache_bytes,
            gpu_per_token=0,
            halved_from=1,
            gpu_piece=_GPU_BUFFERS,
            gpu_streaming=0,
            ram_per_token=4 * CPU_BATCH * (self.heads + 1) if scores else 0,
            hybrid_per_token=0,
            experts_per_token=0,
            embedded_per_token=0,
            absorbed_per_token=0,
            decode_operations=0,
            prompt_operations=0,
        )


def _architecture(source: GGUFFile) -> str:
    return str(source.metadata.get("general.architecture"))


def _cache_values(source: GGUFFile, fields: Fields) -> int:
    """Values that one layer keeps of a token: a latent where it can, else keys and values."""
    if any(name.endswith(".attn_k_b.weight") for name in source.tensors):
        return fields.integer("attention.kv_lora_rank") + fields.integer("rope.dimension_count")
    heads = _most(fields.get("attention.head_count"))
    kv_heads = _most(fields.get("attention.head_count_kv")) or heads
    width = fields.integer("embedding_length") // max(heads, 1)
    keys = fields.integer("attention.key_length", width)
    return kv_heads * (keys + fields.integer("attention.value_length", width))


def _most(value: Any) -> int:
    """A number, or the largest where a file has one for each layer; 0 where there is none."""
    numbers = value if isinstance(value, list) else [value]
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _weights(source: GGUFFile) -> Iterator[Weight]:
    """Every tensor with the room that it takes in its file: up to where the next one starts."""
    sizes = [len(data) for data in source.files.values()]
    rows = sorted(source.tensors.values(), key=lambda info: (info.shard, info.offset))
    for info, following in zip(rows, [*rows[1:], None], strict=True):
        layer = info.name.startswith("blk.")
        require(not layer or bool(_IN_LAYER.match(info.name)), f"{info.name!r:.60} has no layer")
        same = following is not None and following.shard == info.shard
        end = following.offset if following is not None and same else sizes[info.shard]
        kind = _kind(info.name)
        yield Weight(info.name, end - info.offset, 1.0, kind, math.prod(info.shape))


def _kind(name: str) -> Kind:
    if name == "token_embd.weight":
        return Kind.EMBEDDING
    if _is_norm(name):
        return Kind.ROUTER
    if not name.startswith("blk."):
        return Kind.HEAD
    if "_exps" in name:
        return Kind.ROUTED
    return Kind.DENSE if ".ffn_" in name else Kind.ATTENTION


def _is_norm(name: str) -> bool:
    return "_norm" in name or name.endswith(".bias")


def _is_head(weight: Weight) -> bool:
    return weight.layer < 0 and weight.kind != Kind.EMBEDDING
