"""Which of our two kinds of model a file holds: DeepSeek's (config.py) or a dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localr1.models.config import ModelConfig
from localr1.models.dense_config import GGUF_NAMES, DenseConfig, is_dense

Config = ModelConfig | DenseConfig


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], rope_freqs: Sequence[float] = ()
) -> Config:
    """From a GGUF's metadata, tensor table and, of Llama 3, `rope_freqs.weight`.

    Raises Unsupported (another architecture, or a variant that is not implemented), BadFile.
    """
    if metadata.get("general.architecture") in GGUF_NAMES:
        return DenseConfig.from_gguf(metadata, tensors, rope_freqs)
    return ModelConfig.from_gguf(metadata, tensors)


def config_from_hf(config: Mapping[str, Any]) -> Config:
    """From the content of config.json. Raises Unsupported or BadFile, as `config_from_gguf`."""
    return DenseConfig.from_hf(config) if is_dense(config) else ModelConfig.from_hf(config)
