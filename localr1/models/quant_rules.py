"""Which type llama.cpp's quantiser gives each weight: `Q4_K_M` is a rule, not a type.

So a file's size can be said to the byte before anybody downloads it. The rules are those of
`llama_model_quantize` without an importance matrix, for the architectures we plan for; tests hold
them against it, weight by weight. Not here: recipes that publishers mix by hand (Unsloth's UD-*),
the 1- and 2-bit types that need an importance matrix, and models of exactly 8 experts, which it
treats as Mixtral.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from localr1.models.architecture import Config
from localr1.models.config import ModelConfig

# Values and bytes of a block, by ggml's names (ggml-common.h).
BLOCKS: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "IQ4_NL": (32, 18), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_XS": (256, 136),
}  # fmt: skip

# The type of whatever has no rule of its own.
DEFAULTS: Mapping[str, str] = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K", "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL",
    "Q4_0": "Q4_0", "Q5_0": "Q5_0",
}  # fmt: skip

# What a row takes whose length no whole number of 256-value blocks fills.
_SHORT_ROWS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}  # fmt: skip
_FLOAT_QUANTS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Family:
    """What the rules ask about a model."""

    n_layers: int
    n_gqa: int = 1  # query heads for each key head
    tied: bool = False  # no `output.weight`: the embedding is the head too

    @property
    def is_70b(self) -> bool:
        """llama.cpp takes every model of 80 layers and grouped heads for Llama 70B."""
        return self.n_layers == 80 and self.n_gqa > 1


def family_of(config: Config) -> Family:
    """Of a model's configuration."""
    if isinstance(config, ModelConfig):
        return Family(config.n_layers)
    return Family(config.n_layers, config.n_heads // config.n_kv_heads, config.tied)


def nbytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a weight of `shape`, its row length last, in the type `kind`."""
    values, size = BLOCKS[kind]
    return math.prod(shape[:-1]) * (shape[-1] // values * size)


def type_of(name: str, shape: tuple[int, ...], quant: str, family: Family) -> str:
    """The type that weight `name` has in a file of `quant` (a key of DEFAULTS)."""
    stem = name.removesuffix(".weight")
    stem = stem.partition(".")[2].partition(".")[2] if stem.startswith("blk.") else stem
    is_vector = len(shape) == 1 or (len(shape) == 2 and shape[0] == 1)
    if is_vector or not name.endswith(".weight") or stem == "ffn_gate_inp":
        return "F32"
    kind = DEFAULTS[quant]
    if quant not in _FLOAT_QUANTS:
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        kind = _rule(stem, layer, quant, family)
    if shape[-1] % BLOCKS[kind][0]:
        kind = _SHORT_ROWS.get(kind, "F16")
    return kind if shape[-1] % BLOCKS[kind][0] == 0 else "F16"


def _rule(stem: str, layer: int, quant: str, family: Family) -> str:
    default = DEFAULTS[quant]
    if stem == "output" or (stem == "token_embd" and family.tied):
        return default if quant == "Q8_0" else "Q6_K"
    if stem in ("attn_v", "attn_kv_b"):
        return _attn_v(layer, quant, family)
    if "ffn_down" in stem:
        return _ffn_down(layer, quant, family.n_layers)
    if stem == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(quant, default)
    return default


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _attn_v(layer: int, quant: str, family: Family) -> str:
    kind = DEFAULTS[quant]
    if quant == "Q2_K":
        kind = "Q4_K" if family.n_gqa >= 4 else "Q3_K"
    elif quant == "Q3_K_M":
        kind = "Q5_K" if layer < 2 else "Q4_K"
    elif quant == "Q3_K_L" or (quant == "Q4_K_S" and layer < 4):
        kind = "Q5_K"
    elif quant in ("IQ4_XS", "IQ4_NL") and family.n_gqa >= 4:
        kind = "Q5_K"
    elif quant in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, family.n_layers):
        kind = "Q6_K"
    if family.is_70b and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return kind


def _ffn_down(layer: int, quant: str, n_layers: int) -> str:
    first_eighth = layer < n_layers // 8
    if quant == "Q2_K":
        return "Q3_K"
    if quant == "Q3_K_M":
        return "Q5_K" if layer < n_layers // 16 else "Q4_K"
    if quant == "Q3_K_L" or (quant in ("Q4_K_S", "IQ4_XS", "IQ4_NL") and first_eighth):
        return "Q5_K"
    if quant in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, n_layers):
        return "Q6_K"
    return DEFAULTS[quant]
