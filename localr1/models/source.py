"""A model's file or folder, opened: weights by GGUF name, sizes, text. No torch is needed here."""

from __future__ import annotations

from pathlib import Path

from localr1.models.config import ModelConfig
from localr1.models.gguf import GGUFFile
from localr1.models.safetensors import HFFolder
from localr1.models.template import ChatTemplate
from localr1.models.tokenizer import Tokenizer

Source = GGUFFile | HFFolder


def open_source(path: Path) -> Source:
    """The weights at `path`: a GGUF file (any shard of a split one) or a HF folder."""
    return HFFolder.open(path) if path.is_dir() else GGUFFile.open(path)


def read_config(source: Source) -> ModelConfig:
    """The model's sizes, from either kind of file. Raises Unsupported for other architectures."""
    if isinstance(source, GGUFFile):
        return ModelConfig.from_gguf(source.metadata, source.tensors)
    return ModelConfig.from_hf(source.config)


def read_text(source: Source) -> tuple[Tokenizer, ChatTemplate]:
    """Tokenizer and chat template of the model."""
    if isinstance(source, GGUFFile):
        tokenizer = Tokenizer.from_gguf(source.metadata)
        return tokenizer, ChatTemplate.from_gguf(source.metadata, tokenizer)
    tokenizer = Tokenizer.from_folder(source.path)
    return tokenizer, ChatTemplate.from_folder(source.path, tokenizer)
