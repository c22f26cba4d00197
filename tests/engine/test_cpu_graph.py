"""One compiled call a token: the logits of the model's own Python form, for every kind of model.

Float weights leave only the order of sums: TIGHT. Quantised ones meet int8 activations, and a sum
in another order now and then rounds to the next int8; where experts take one term that moves the
logits by a thousandth. So there both forms are compared with exact logits, and must be as near.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_experts
from cpu_experts.mailbox import Mailbox
from localr1.engine.cpu_graph import CpuGraph
from localr1.models.deepseek import ffn_bank
from localr1.models.kv_cache import KVCache
from localr1.models.source import open_source, read_config
from localr1.models.transformer import Transformer
from tests import toy, toy_dense

TIGHT = 3e-6  # float32 sums of some hundred terms, in another order, through 3 layers
CONTEXT, LENGTHS = 512, (0, 62, 300, 509)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    cpu_experts.set_threads(request.param)
    yield request.param
    cpu_experts.set_threads(None)


def model_of(path: Path) -> tuple[Transformer, KVCache]:
    source = open_source(path)
    model = Transformer(read_config(source), source, CONTEXT)
    return model, model.new_cache(CONTEXT)


def by_python(model: Transformer, cache: KVCache, token: int) -> np.ndarray:
    """The definition: every part called by Python."""
    *_, hidden = model.layers([token], cache)
    return model.head(hidden)[0].numpy()


def compare(model: Transformer, cache: KVCache, lengths: tuple[int, ...]) -> list[float]:
    """Relative distances of the two forms' logits at several context lengths."""
    graph, rng = CpuGraph(model, cache), np.random.default_rng(0)
    vocab, errors = model.config.vocab_size, []
    for length in lengths:
        missing = rng.integers(vocab, size=length - cache.length).tolist()
        if missing:
            for _ in model.layers(missing, cache):
                pass
            cache.commit(len(missing))
        for token in rng.integers(vocab, size=3).tolist():
            expected = by_python(model, cache, token)
            cache.rows[:, cache.length] = float("nan")
            found = graph.step(token)[0].numpy()
            assert cache.rows[:, cache.length].isfinite().all()
            errors.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
            cache.commit(1)
    return errors


DEEPSEEK: dict[str, dict[str, Any]] = {
    "v3": {},
    "v2": {"version": 2},
    "no q_lora": {"q_lora_rank": None},
    "heads of odd sizes": {"num_attention_heads": 6, "v_head_dim": 24, "qk_nope_head_dim": 40},
    "a bigger shared expert": {"n_shared_experts": 2},
    "no groups": {"n_group": 1, "topk_group": 1},
    "all dense": {"first_k_dense_replace": 3},
}


@pytest.mark.parametrize("overrides", DEEPSEEK.values(), ids=DEEPSEEK)
@pytest.mark.parametrize("layout", ["k_b+v_b", "kv_b"])
def test_deepseek(tmp_path: Path, threads: int, overrides: dict[str, Any], layout: str):
    folder = toy.hf_folder(tmp_path / "hf", toy.config(**overrides))
    model, cache = model_of(toy.gguf(folder, tmp_path / "toy.gguf", "F32", layout=layout))
    assert max(compare(model, cache, LENGTHS)) < TIGHT


DENSE: dict[str, Callable[[], toy_dense.Config]] = {
    "llama": lambda: toy_dense.config("llama", toy_dense.LLAMA3),
    "qwen2": lambda: toy_dense.config("qwen2", toy_dense.YARN),
    "qwen3": lambda: toy_dense.config("qwen3"),
    "8 heads for each key": lambda: toy_dense.config("llama", num_attention_heads=16),
    "tied": lambda: toy_dense.config("qwen2", tie_word_embeddings=True),
}


@pytest.mark.parametrize("config", DENSE.values(), ids=DENSE)
def test_dense(tmp_path: Path, threads: int, config: Callable[[], toy_dense.Config]):
    folder = toy_dense.hf_folder(tmp_path / "hf", config())
    for path in (folder, toy_dense.gguf_file(folder, tmp_path / "toy.gguf")):
        model, cache = model_of(path)
        assert max(compare(model, cache, LENGTHS)) < TIGHT


def test_a_program_and_a_mailbox_take_turns(threads: int):
    """As where a GPU runs the last layers: both have the pool, one after the other."""
    source = open_source(toy.TINY_R1)
    config = read_config(source)
    model = Transformer(config, source, CONTEXT)
    graph, rng = CpuGraph(model, model.new_cache(CONTEXT)), np.random.default_rng(0)
    bank = ffn_bank(source, "blk.3", "_exps")
    shape = (1, config.n_experts_per_tok)
    ids = np.arange(config.n_experts_per_tok, dtype=np.int32).reshape(shape)
    weights, x = rng.random(shape, np.float32), rng.random((1, config.hidden_size), np.float32)
    expected = graph.step(5).clone(), cpu_experts.moe_forward(x, ids, weights, bank)
    box = Mailbox([bank], config.hidden_size, shape[1], 1)
    box.start()
    try:
        for _ in range(300):
            box.rest()
            np.testing.assert_array_equal(graph.step(5), expected[0])
            box.resume()
            for _ in range(2):
                answer = box.wait(box.submit(0, ids, weights, x))
                np.testing.assert_array_equal(answer, expected[1])
    finally:
        box.stop()


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_weights_leave_both_forms_as_near_to_each_other_as_rounding_does(
    tmp_path: Path, threads: int, kind: str
):
    folder = toy_dense.hf_folder(tmp_path / "hf", toy_dense.config("llama"))
    model, cache = model_of(toy_dense.gguf_file(folder, tmp_path / "toy.gguf", kind))
    assert np.median(compare(model, cache, LENGTHS)) < 3e-3
