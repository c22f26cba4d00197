"""Tokens begun before they are known: the embedding that the GPU reads, and texts against the eager
twin's, whatever becomes of the token that was begun.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cpu_experts import QuantTensor
from localr1.engine.ahead import DecodeAhead
from localr1.engine.gpu_draw import GpuDraw
from localr1.engine.gpu_runner import GpuRunner
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import BadFile
from localr1.gpu.driver import GpuError
from localr1.gpu.embedding import embed
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.sampling import UNSETTLED
from localr1.models.gpu import GpuParts
from localr1.models.gpu_embedding import GpuEmbedding
from localr1.models.linear import Embedding
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from tests import toy_dense
from tests.cpu_experts.blocks import random_tensor

CONTEXT = 16


@pytest.mark.parametrize("name", sorted(GPU_FORMATS))
def test_rows_are_exact(device: str, name: str) -> None:
    """From RAM, of more chunks than a program takes; a token that is none takes the first row."""
    tensor = random_tensor(name, (7, 2560), np.random.default_rng(1))
    embedding = GpuEmbedding.in_ram(tensor, torch.device(device))
    assert torch.equal(
        embedding([3, 0, 6, 3]).cpu(), torch.from_numpy(tensor.dequantize_rows([3, 0, 6, 3]))
    )
    behind, position = (torch.tensor([n], dtype=torch.int32, device=device) for n in (41, 0))
    out = torch.empty(1, 2560, device=device)
    for token, row in ((5, 5), (-1, 0)):
        ids = torch.tensor([token], dtype=torch.int32, device=device)
        embed(embedding.weight, ids, out, behind, position)
        assert torch.equal(out.cpu(), torch.from_numpy(tensor.dequantize_rows([row])))
    assert (int(behind), int(position)) == (43, 42)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model_file(request, tmp_path_factory) -> Path:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 1}
    config = toy_dense.config(
        "llama", None, **sizes, vocab_size=64, tie_word_embeddings=request.param
    )
    folder = toy_dense.hf_folder(tmp_path_factory.mktemp("hf"), config)
    return toy_dense.gguf_file(folder, folder / "toy.gguf", "F32")


@pytest.fixture
def runner(model_file: Path, device: str) -> GpuRunner:
    source = open_source(model_file)
    config = read_config(source)
    parts = GpuParts(config, CONTEXT, device, lambda name: True)
    made = GpuRunner(Transformer(config, source, CONTEXT, parts), parts, CONTEXT)
    assert made.reads_embedding and isinstance(made._graph, DecodeAhead)
    return made


def eager(runner: GpuRunner, token: int) -> torch.Tensor:
    *_, hidden = runner.model.layers([token], runner.cache)
    return runner.model.head(hidden).cpu()


def read(runner: GpuRunner, ids: list[int]) -> torch.Tensor:
    *_, logits = runner.read(ids)
    runner.cache.commit(len(ids))
    return logits


Choose = Callable[[int], int]


@pytest.mark.parametrize(
    "taken",
    [lambda n: n, lambda n: (n + 1) % 64, lambda n: n if n % 2 else 7],
    ids=["as drawn", "another one", "now and then"],
)
def test_every_token_is_its_eager_twin(runner: GpuRunner, taken: Choose) -> None:
    """Whether the token that was begun is the one that is wanted, another one, or now and then."""
    sampler = Sampler(SamplingParams(seed=3, temperature=1.0), [])
    logits = read(runner, [5, 6, 7])
    for _ in range(4):
        token = taken(runner.draw(sampler, logits))
        logits = runner.step(token)
        found = logits.cpu().clone()
        runner.rest()
        assert torch.equal(found, eager(runner, token))
        logits = runner.step(token)
        runner.cache.commit(1)


def test_a_whole_text(runner: GpuRunner) -> None:
    """Up to the last token of the context, drawn and taken without a rest; then another one."""
    runner.cache.max_length = 6
    for first in (9, 11):
        runner.cache.truncate(0)
        sampler = Sampler(SamplingParams(temperature=0.0), [])
        logits, tokens = read(runner, [first, 3]), []
        while True:
            tokens.append(runner.draw(sampler, logits))
            if runner.cache.length == runner.cache.max_length:
                break
            logits = runner.step(tokens[-1])
            runner.cache.commit(1)
        runner.rest()
        runner.cache.truncate(2)
        for token, drawn in pairwise(tokens):
            assert int(eager(runner, token).argmax()) == drawn
            runner.cache.commit(1)


def test_what_the_gpu_did_not_settle_is_not_gone_on_with(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, sampler = read(runner, [5]), Sampler(SamplingParams(seed=1), [])
    broken = logits.clone()
    broken[0, 3] = float("nan")
    with pytest.raises(BadFile):
        runner.draw(sampler, broken)

    def left_open(draw: GpuDraw, sampler: Sampler) -> int:
        draw.token.fill_(UNSETTLED)
        draw.settled = False
        return 8

    monkeypatch.setattr(GpuDraw, "end", left_open)
    token = runner.draw(sampler, logits)
    found = runner.step(token).cpu().clone()
    runner.rest()
    assert torch.equal(found, eager(runner, token))


def test_where_the_driver_refuses_the_cpu_embeds(
    model_file: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(weight: QuantTensor, device: torch.device) -> GpuEmbedding:
        raise GpuError("the GPU cannot read RAM by itself")

    monkeypatch.setattr(GpuEmbedding, "in_ram", refuse)
    source = open_source(model_file)
    config = read_config(source)
    parts = GpuParts(config, CONTEXT, device, lambda name: True)
    model = Transformer(config, source, CONTEXT, parts)
    assert isinstance(model.token_embd, GpuEmbedding) == config.tied
    assert isinstance(model.token_embd, Embedding) != config.tied
