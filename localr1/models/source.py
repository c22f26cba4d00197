"""A model's file or folder, opened: weights by GGUF name, sizes, text. No torch is needed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from localr1.models.architecture import Config, config_from_gguf, config_from_hf
from localr1.models.dense_config import ROPE_FREQS, DenseConfig
from localr1.models.fields import require
from localr1.models.gguf import GGUFFile
from localr1.models.safetensors import HFFolder
from localr1.models.template import ChatTemplate
from localr1.models.tokenizer import Tokenizer

Source = GGUFFile | HFFolder


def open_source(path: Path) -> Source:
    """The weights at `path`: a GGUF file (any shard of a split one) or a HF folder."""
    return HFFolder.open(path) if path.is_dir() else GGUFFile.open(path)


def read_config(source: Source) -> Config:
    """The model's sizes, from either kind of file. Raises Unsupported for other architectures."""
    if isinstance(source, GGUFFile):
        return config_from_gguf(source.metadata, source.tensors, _rope_freqs(source))
    config = config_from_hf(source.config)
    if isinstance(config, DenseConfig):  # what the weights have, not what the file announces
        config = replace(config, tied="output.weight" not in source)
    return config


def _rope_freqs(source: GGUFFile) -> tuple[float, ...]:
    """The divisors of Llama 3's frequencies, where the file holds them."""
    info = source.tensors.get(ROPE_FREQS)
    if info is None:
        return ()
    require(len(info.shape) == 1 and info.shape[0] <= 4096, f"{ROPE_FREQS} is no short vector")
    return tuple(map(float, source[ROPE_FREQS].dequantize()[0]))


def read_text(source: Source) -> tuple[Tokenizer, ChatTemplate]:
    """Tokenizer and chat template of the model."""
    if isinstance(source, GGUFFile):
        tokenizer = Tokenizer.from_gguf(source.metadata)
        return tokenizer, ChatTemplate.from_gguf(source.metadata, tokenizer)
    tokenizer = Tokenizer.from_folder(source.path)
    return tokenizer, ChatTemplate.from_folder(source.path, tokenizer)
