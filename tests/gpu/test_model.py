"""A model whose parts are the GPU's against the same model on the CPU.

Without a GPU the kernels run in Triton's interpreter and the experts are asked by copies.
"""

from __future__ import annotations

import io

import pytest
import torch

from localr1.engine import halves
from localr1.engine.ahead import DecodeAhead
from localr1.engine.cpu_graph import CpuGraph
from localr1.engine.graph import DecodeGraph
from localr1.models import inventory
from localr1.models.cache_layout import CACHES
from localr1.models.gpu import GpuParts
from localr1.models.gpu_embedding import GpuEmbedding
from localr1.models.kv_cache import KVCache
from localr1.models.source import Source, open_source, read_config
from localr1.models.transformer import Transformer
from tests import oracles, toy, toy_dense
from tests.conftest import HAS_GPU

pytestmark = [pytest.mark.gpu] if HAS_GPU else []

DEVICE = "cuda" if HAS_GPU else "cpu"
CONTEXT = 64
DENSE = {  # what each family has of its own, and formats that join queries, keys and values or not
    "llama": ({"num_attention_heads": 4, "num_key_value_heads": 1}, toy_dense.LLAMA3, "F32"),
    "qwen2": ({"num_attention_heads": 6, "num_key_value_heads": 2}, None, "Q4_K_M"),
    "qwen3": ({"tie_word_embeddings": True}, toy_dense.YARN, "Q8_0"),
}
IDS = [(7 * i * i + 3 * i) % 256 for i in range(12)]


PLACES = {
    "experts in RAM": lambda name: "_exps." not in name,
    "all on the GPU": lambda name: True,
    "all FFNs in RAM": lambda name: "_exps." not in name and ".ffn_up." not in name,
    "the first layer on the CPU": lambda name: "_exps." not in name and "blk.0." not in name,
    "the first layer on the CPU, all FFNs in RAM": lambda name: (
        "_exps." not in name and ".ffn_up." not in name and "blk.0." not in name
    ),
}
*_, SPLIT, SPLIT_FFNS_IN_RAM = PLACES


@pytest.fixture(scope="module", params=["kv_b", "k_b+v_b"] if HAS_GPU else ["k_b+v_b"])
def source(request, tmp_path_factory) -> Source:
    """A toy with one dense layer and one of experts."""
    folder = toy.hf_folder(tmp_path_factory.mktemp("hf"), toy.config(num_hidden_layers=2))
    return open_source(toy.gguf(folder, folder / "toy.gguf", layout=request.param))


def logits(source: Source, parts: GpuParts | None, pieces: list[list[int]]) -> torch.Tensor:
    """Behind every token, read in these pieces."""
    model = Transformer(read_config(source), source, CONTEXT, parts)
    cache, out = model.new_cache(CONTEXT), []
    for ids in pieces:
        *_, hidden = model.layers(ids, cache)
        cache.commit(len(ids))
        out.append(model.head(hidden).cpu())
    return torch.cat(out)


@pytest.mark.parametrize("place", list(PLACES)[:-1])  # the last one differs for dense models
def test_logits_are_the_cpus(source: Source, place: str) -> None:
    pieces = [IDS[:9], IDS[9:10], IDS[10:12]]  # a prompt, one token, two tokens
    parts = GpuParts(read_config(source), CONTEXT, DEVICE, PLACES[place])
    on_cpu, on_gpu = logits(source, None, pieces), logits(source, parts, pieces)
    errors = (on_gpu - on_cpu).norm(dim=1) / on_cpu.norm(dim=1)  # int8 there, bf16 here
    assert float(errors.sort()[0][-2]) < 2e-2  # one token's experts may be others, nearly tied


@pytest.mark.parametrize("place", ["experts in RAM", "all FFNs in RAM", SPLIT])
def test_halves_side_by_side_are_the_whole(
    source: Source, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(5 * i * i + i) % 256 for i in range(21)]
    config = read_config(source)
    parts = GpuParts(config, CONTEXT, DEVICE, PLACES[place])
    model = Transformer(config, source, CONTEXT, parts)
    found = []
    for least in (4096, 8):
        monkeypatch.setattr(halves, "halved_from", lambda config, least=least: least)
        cache = model.new_cache(CONTEXT)
        *_, hidden = halves.read(model, parts, ids, cache)
        rows = [cache.of(layer)[0][:21].cpu().float() for layer in range(config.n_layers)]
        found.append((model.head(hidden, last=1).cpu(), torch.stack(rows)))
    (whole, rows), (twice, rows_twice) = found
    torch.testing.assert_close(twice, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows_twice, rows, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=DENSE)
def dense(request, tmp_path_factory) -> Source:
    """A toy; a Llama's pairs lie side by side, a Qwen's half a head apart."""
    sizes, rope, kind = DENSE[request.param]
    if kind == "Q4_K_M":  # whole blocks
        sizes = sizes | {"hidden_size": 256}
    sizes = sizes | {"vocab_size": 256, "num_hidden_layers": 2}
    config = toy_dense.config(request.param, rope, **sizes)
    folder = toy_dense.hf_folder(tmp_path_factory.mktemp("hf"), config)
    if kind != "Q4_K_M":
        return open_source(toy_dense.gguf_file(folder, folder / "toy.gguf", kind))
    whole = toy_dense.gguf_file(folder, folder / "f32.gguf")
    return open_source(oracles.quantize(whole, folder / "toy.gguf", kind))


@pytest.mark.parametrize("place", ["all on the GPU", "all FFNs in RAM", SPLIT])
def test_logits_of_dense_models_are_the_cpus(dense: Source, place: str) -> None:
    pieces = [IDS[:9], IDS[9:10], *([IDS[10:12]] if HAS_GPU else [])]  # seconds each without
    parts = GpuParts(read_config(dense), CONTEXT, DEVICE, PLACES[place])
    on_cpu, on_gpu = logits(dense, None, pieces), logits(dense, parts, pieces)
    assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 2e-2  # int8 there, bf16 here


@torch.inference_mode()
def test_the_first_layer_as_one_call_is_its_python_form(source: Source, dense: Source) -> None:
    for model_file in (source, dense):
        config = read_config(model_file)
        parts = GpuParts(config, CONTEXT, DEVICE, PLACES[SPLIT])
        model = Transformer(config, model_file, CONTEXT, parts)
        cache = model.new_cache(CONTEXT)
        graph = CpuGraph(model, cache)
        for token in IDS[:6]:
            expected = next(model.layers([token], cache)).whole()
            rows, _ = cache.of(0)
            rows[cache.length] = float("nan")
            found = graph.step(token)
            assert rows[cache.length].isfinite().all()
            assert float((found - expected).norm() / expected.norm()) < 3e-3  # int8 of sums
            cache.commit(1)


def test_latents_in_8_bits_change_little(source: Source) -> None:
    assert 1e-4 < change_by_8_bits(source) < 5e-2  # 4 significant bits


def test_keys_and_values_in_8_bits_change_little(dense: Source) -> None:
    assert 1e-5 < change_by_8_bits(dense) < 3e-2  # up to 7


def change_by_8_bits(source: Source) -> float:
    """Of the logits behind a prompt and a token, relative to their norm; the first layer runs on
    the CPU. In either form the memory is what the planner counts, and what was saved of it goes on
    with the same logits.
    """
    config, found, layouts = read_config(source), [], set()
    for kind in CACHES:
        parts = GpuParts(config, CONTEXT, DEVICE, PLACES[SPLIT], cache=kind)
        model = Transformer(config, source, CONTEXT, parts)
        cache, again, file = model.new_cache(CONTEXT), model.new_cache(CONTEXT), io.BytesIO()
        behind(model, cache, IDS[:9])
        cache.save(file, 0, 9)
        file.seek(0)
        again.load(file, 9)
        again.commit(9)
        found.append(behind(model, cache, IDS[9:10]))
        assert torch.equal(behind(model, again, IDS[9:10]), found[-1])
        demands = inventory.from_source(source, config).with_cache(kind).demands
        assert cache.token_nbytes == demands.cache_ram + (config.n_layers - 1) * demands.cache_gpu
        assert cache.nbytes == CONTEXT * cache.token_nbytes
        layouts.add(cache.layout)
    assert len(layouts) == 2
    wide, narrow = found
    return float((narrow - wide).norm() / wide.norm())


def behind(model: Transformer, cache: KVCache, ids: list[int]) -> torch.Tensor:
    """Logits behind the last of `ids`, which are committed."""
    *_, hidden = model.layers(ids, cache)
    cache.commit(len(ids))
    return model.head(hidden, last=1).cpu()


def graph_of(model: Transformer, parts: GpuParts, cache: KVCache) -> DecodeGraph | DecodeAhead:
    """What the runner takes."""
    if isinstance(model.token_embd, GpuEmbedding):
        return DecodeAhead(model, model.token_embd, parts, cache)
    return DecodeGraph(model, parts, cache)


def both_ways(source: Source, place: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits behind tokens that a graph runs, and its eager twin."""
    parts = GpuParts(read_config(source), CONTEXT, DEVICE, PLACES[place], cache=kind)
    model = Transformer(read_config(source), source, CONTEXT, parts)
    cache = model.new_cache(CONTEXT)
    graph, found = graph_of(model, parts, cache), []
    try:
        for step in (graph.step, lambda token: model.head(list(model.layers([token], cache))[-1])):
            cache.truncate(0)
            for token in IDS:
                found.append(step(token).cpu())
                cache.commit(1)
    finally:
        if isinstance(graph, DecodeGraph):
            graph.close()
    return torch.cat(found[: len(IDS)]), torch.cat(found[len(IDS) :])


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.gpu
@pytest.mark.parametrize("place", ["all on the GPU", "all FFNs in RAM"])
@pytest.mark.parametrize("kind", CACHES)
def test_a_dense_token_as_a_graph_is_its_eager_twin(dense: Source, place: str, kind: str) -> None:
    assert torch.equal(*both_ways(dense, place, kind))


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.gpu
@pytest.mark.parametrize("place", [SPLIT, SPLIT_FFNS_IN_RAM])
@pytest.mark.parametrize("kind", CACHES)
def test_a_token_of_both_is_nearly_its_eager_twin(
    source: Source, dense: Source, place: str, kind: str
) -> None:
    """The CPU's layers, as one call, sum in another order than Python does."""
    for model_file in (source, dense):
        graph, eager = both_ways(model_file, place, kind)
        errors = (graph - eager).norm(dim=1) / eager.norm(dim=1)
        assert float(errors.sort()[0][-2]) < 2e-2
