"""`localr1 bench --synthetic` on the CPU: the figures mean what they say, whatever their size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cpu_experts import amx
from localr1 import bench_synthetic, cli, registry, synthetic_card, synthetic_plan, synthetic_run
from localr1.bench_synthetic import Options
from localr1.errors import NO_MEMORY, NOT_FOUND, UNSUPPORTED, USAGE, DoesNotFit, LocalR1Error
from localr1.models import cache_layout, inventory
from localr1.models.architecture import config_from_hf
from localr1.models.cache_layout import CACHES
from localr1.models.config import ModelConfig
from localr1.models.kv_cache import KVCache
from localr1.models.synthetic import SyntheticWeights
from localr1.synthetic_run import Choices, SyntheticRun, asked
from offload.hardware import on_paper

GIB, MIB = 1 << 30, 1 << 20
R1 = registry.parse("deepseek-r1")[0].config
TINY: dict[str, Any] = {
    **R1, "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "q_lora_rank": 256, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 64, "first_k_dense_replace": 1, "intermediate_size": 512,
    "moe_intermediate_size": 256, "n_routed_experts": 16, "num_experts_per_tok": 4,
}  # fmt: skip
DISTILL_7B = registry.parse("r1-distill-7b")[0].config
DENSE: dict[str, Any] = {
    **DISTILL_7B, "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512,
}  # fmt: skip
QUICK = Options(quant="Q4_K_M", ram=64 * MIB, context=64, tokens=4, prefill=16)


def experts_of(config: ModelConfig) -> frozenset[str]:
    stock = inventory.from_rule(config, "Q4_K_M")
    placed = synthetic_plan.planned(stock, None, on_paper(vram=None, ram=16 * GIB), 32)
    return synthetic_plan.in_ram(stock, placed, on_gpu=False).names


@pytest.fixture(scope="module")
def tiny() -> ModelConfig:
    return ModelConfig.from_hf(TINY)


@pytest.fixture(scope="module")
def machine():
    return on_paper(vram=None, ram=16 * GIB)


@pytest.fixture(scope="module")
def result(tiny: ModelConfig, machine) -> dict[str, Any]:
    return bench_synthetic.measure("tiny:Q4_K_M", tiny, QUICK, machine)


def test_the_parts_add_up_to_a_token(result: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in result["rows"]}
    parts = ("all but routed experts", "routed experts alone", "waiting, the rest")
    token, twice = rows["a token"]["value"], rows["side by side"]["value"]
    assert sum(rows[part]["value"] for part in parts) - twice == pytest.approx(token)
    assert min(row["value"] for row in result["rows"]) >= 0
    assert rows["waiting, the rest"]["value"] == 0 or twice == 0
    assert rows["decode"]["value"] == pytest.approx(1e3 / token)
    assert rows["prefill"]["tokens"] == 16
    assert rows["routed experts"]["value"] == pytest.approx(
        result["limits"]["routed_bytes_per_token"] / token / 1e6
    )
    assert all(row["share"] is None for row in result["rows"])  # it fits the CPU's cache
    assert not result["limits"]["applies"]


def test_what_is_done_side_by_side_is_no_negative_waiting() -> None:
    """R1 on an H100 with 16 cores: the GPU's work is hidden behind the CPU's."""
    times = synthetic_run.TokenSeconds(whole=102.0, without=9.5, silent=9.0)
    assert bench_synthetic.parts_of(times, 101.0, "routed experts", on_gpu=True) == {
        "GPU, no experts": 9.0, "hand-offs": 0.5, "routed experts alone": 101.0,
        "waiting, the rest": 0.0, "side by side": 8.5,
    }  # fmt: skip
    parts = bench_synthetic.parts_of(times, 90.0, "routed experts", on_gpu=True)
    assert (parts["waiting, the rest"], parts["side by side"]) == (2.5, 0.0)
    stubbed = bench_synthetic.parts_of(times, None, "FFNs", on_gpu=True)
    assert stubbed == {"GPU, no FFNs": 9.0, "hand-offs": 0.5}


def test_the_limit_is_of_all_bytes_that_a_token_reads(
    result: dict[str, Any], tiny: ModelConfig
) -> None:
    limits, stock = result["limits"], inventory.from_rule(tiny, "Q4_K_M", newer=True)
    read = sum(weight.nbytes * weight.read_fraction for weight in stock.weights)
    cache = stock.demands.cache_gpu * tiny.n_layers * (QUICK.context - QUICK.tokens)
    assert limits["ram_bytes_per_token"] == pytest.approx(read + cache)
    assert limits["decode"] == pytest.approx(limits["read_bandwidth"] * 1e9 / (read + cache))


def test_the_result_is_told_and_is_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    text = synthetic_card.card(result)
    assert "all distinct" in text and "as it was meanwhile" in text and "RTX 3090" in text
    assert "with this RAM's bandwidth" in text and "does not fit" not in text
    small = {**result, "plan": {**result["plan"], "ram_total": MIB}}
    assert "this machine has 0.00 GiB: the model does not fit it" in synthetic_card.card(small)


def test_the_plan_is_made_again_for_ram_as_fast_as_it_was(tiny: ModelConfig, machine) -> None:
    slow = replace(machine, ram_bandwidth=machine.ram_bandwidth / 1000)
    plan = bench_synthetic.measure("t", tiny, replace(QUICK, prefill=0), slow)["plan"]
    assert plan["decode"] < plan["decode_meanwhile"] / 10


def test_a_projection_is_the_limit_with_that_card(result: dict[str, Any]) -> None:
    quick, slow = result["projections"]
    assert quick["decode_limit"] > slow["decode_limit"] and quick["fits"] and slow["fits"]
    assert quick["decode"] >= slow["decode"] > 0  # so small a model is quicker without them
    assert quick["ram"] == slow["ram"] > 0


def test_ram_is_what_the_plan_says_of_the_weights_that_are_there(tiny: ModelConfig) -> None:
    """In a process of its own: what others left in memory would count."""
    code = (
        "import json\n"
        "from tests.test_bench_synthetic import *\n"
        "config = ModelConfig.from_hf({**TINY, 'moe_intermediate_size': 16384,"
        " 'n_routed_experts': 64})\n"
        "found = on_paper(vram=None, ram=16 * GIB)\n"
        "options = replace(QUICK, ram=700 * MIB, prefill=0)\n"
        "bench_synthetic.measure('t', config, options, found)\n"
        "told = bench_synthetic.measure('t', config, options, found)\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    plan, gone = told["plan"], told["synthetic"]
    assert gone["distinct_bytes"] == 700 * MIB < gone["routed_bytes"]
    print(f"RAM {plan['ram_measured'] / GIB:.3f} GiB, planned {plan['ram_held'] / GIB:.3f}")
    assert plan["ram_held"] < plan["ram"] - (gone["routed_bytes"] - 700 * MIB) / 2
    assert plan["ram_measured"] == pytest.approx(plan["ram_held"], rel=0.15)
    assert sum(plan["ram_parts"].values()) <= plan["ram_measured"] * 1.01


def test_with_a_stub_nothing_of_the_experts_is_read(tiny: ModelConfig, machine) -> None:
    stubbed = bench_synthetic.measure("t", tiny, replace(QUICK, stub=True, prefill=0), machine)
    assert stubbed["limits"]["routed_bytes_per_token"] == 0
    decode = [row["name"] for row in stubbed["rows"] if row["phase"] == "decode"]
    assert decode == ["decode", "a token", "all but routed experts"]
    text = synthetic_card.card(stubbed)
    assert "answer at once" in text and "the plan said" not in text
    assert stubbed["plan"]["decode"] is None


def test_experts_are_chosen_anew_for_every_layer_and_token(tiny: ModelConfig) -> None:
    choices = Choices(tiny, "cpu")
    choices.draw(8)
    first, at = choices.of(1, 8).clone(), choices.of(1, 8).data_ptr()
    assert not torch.equal(first, choices.of(2, 8))
    assert all(len(set(row.tolist())) == 4 for row in first)
    assert first.dtype == torch.int32 and 0 <= int(first.min()) and int(first.max()) < 16
    choices.draw(8)
    assert choices.of(1, 8).data_ptr() == at and not torch.equal(first, choices.of(1, 8))
    choices.draw(8, stub=True)
    assert (choices.of(1, 8) == -1).all()


def test_the_chosen_experts_are_the_ones_that_work(tiny: ModelConfig) -> None:
    run = SyntheticRun(tiny, "Q4_K_M", 32, experts_of(tiny), ram=64 * MIB)
    moe = run.model.blk[1].feed_forward
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (1, 256)).astype(np.float32))
    ids, weights = torch.zeros(1, 4, dtype=torch.int32), torch.full((1, 4), 0.25)
    normed = run.model.parts.activations(x)
    run.choices.draw(1)
    one = moe.experts.start(normed, ids, weights).wait()
    assert one.abs().max() > 0
    run.choices.draw(1, stub=True)
    assert moe.experts.start(normed, ids, weights).wait().abs().max() == 0


def test_a_token_on_the_cpu_is_the_engines_with_chosen_experts(tiny: ModelConfig) -> None:
    """The compiled call gives what the model's own form gives, for the experts that were drawn."""
    run = SyntheticRun(tiny, "Q4_K_M", 32, experts_of(tiny), ram=64 * MIB)
    for block in run.model.blk[1:]:  # the two forms list experts in other orders: all weigh alike
        block.feed_forward.gate.router.parts[0][:] = 0
        block.feed_forward.gate.ffn_gate_inp = torch.zeros(16, 256)
    run.cache.commit(8)
    answers = []
    for silent in (False, True):
        with run._token(silent) as step:
            run.cache.truncate(8)
            run.choices.draw()
            answers.append(step(3).clone())
            *_, hidden = run.model.layers([3], run.cache)
        torch.testing.assert_close(answers[-1], run.model.head(hidden), rtol=1e-3, atol=1)
    assert not torch.allclose(*answers, rtol=1e-2, atol=1e-2)


def test_memory_is_used_again_where_it_is_short(tiny: ModelConfig) -> None:
    routed = experts_of(tiny)
    whole = SyntheticWeights(tiny, "Q4_K_M", routed, GIB)
    assert whole.distinct_bytes == whole.routed_bytes
    largest = whole["blk.1.ffn_down_exps.weight"].nbytes
    short = SyntheticWeights(tiny, "Q4_K_M", routed, 2 * largest)
    assert short.distinct_bytes == 2 * largest < short.routed_bytes == whole.routed_bytes
    for name in ("blk.1.ffn_gate_exps.weight", "blk.2.ffn_down_exps.weight"):
        assert short[name].shape == whole[name].shape
        assert short[name].parts[0].any()
    with pytest.raises(DoesNotFit, match="one of the weights to read from RAM"):
        SyntheticWeights(tiny, "Q4_K_M", routed, largest // 2)


def test_a_dense_model_is_measured_whole(machine) -> None:
    """On the CPU: all its matrices in RAM, and nothing that could be told apart."""
    config = config_from_hf(DENSE)
    result = bench_synthetic.measure("tiny", config, QUICK, machine)
    stock = inventory.from_rule(config, "Q4_K_M")
    read = sum(weight.nbytes * weight.read_fraction for weight in stock.weights)
    cache = stock.demands.cache_gpu * config.n_layers * (QUICK.context - QUICK.tokens)
    assert result["limits"]["ram_bytes_per_token"] == pytest.approx(read + cache)
    decode = [row["name"] for row in result["rows"] if row["phase"] == "decode"]
    assert decode == ["decode", "a token"]
    assert result["synthetic"]["distinct_bytes"] == result["synthetic"]["routed_bytes"]
    assert "weights 0.0 of 0.0 GiB in RAM, all distinct" in synthetic_card.card(result)


def test_a_dense_model_takes_a_small_gpu_as_far_as_it_goes() -> None:
    config = config_from_hf(DISTILL_7B)
    stock = inventory.from_rule(config, "Q4_K_M")
    limits = []
    for vram in (24, 4):
        found = on_paper(vram=vram * GIB, ram=64 * GIB)
        placed = synthetic_plan.planned(stock, found.gpus[0], found, 2048)
        ffns = synthetic_plan.in_ram(stock, placed, on_gpu=True)
        assert bool(ffns.names) == (vram == 4) and all(".ffn_" in name for name in ffns.names)
        layers = asked(config, ffns.names, on_gpu=True)
        assert len(layers) == len(ffns.names) / 3 and layers == list(range(28))[-len(layers) :] * (
            vram == 4
        )
        read = synthetic_plan.traffic(stock, ffns, 2048)
        assert read.shared == 0 and (read.ram > 0) == (vram == 4)
        limits.append(read.seconds(50e9, 1000e9))
    assert limits[0] < limits[1] < read.seconds(50e9, None)
    with pytest.raises(DoesNotFit, match="GiB of VRAM"):
        small = on_paper(vram=2 * GIB, ram=64 * GIB)
        synthetic_plan.planned(stock, small.gpus[0], small, 2048)


def test_a_gpu_with_too_little_room_is_refused() -> None:
    stock = inventory.from_rule(ModelConfig.from_hf(R1), "Q4_K_M")
    found = on_paper(vram=80 * GIB, ram=64 * GIB)
    placed = synthetic_plan.planned(stock, found.gpus[0], found, 8192)
    kinds = {item.name for item in placed.gpu}
    assert "routed experts" not in kinds and "attention" in kinds and placed.context == 8192
    small = on_paper(vram=8 * GIB, ram=64 * GIB)
    with pytest.raises(DoesNotFit, match="GiB of VRAM"):
        synthetic_plan.planned(stock, small.gpus[0], small, 8192)


def test_an_8bit_cache_is_for_a_gpu(tiny: ModelConfig, machine) -> None:
    with pytest.raises(LocalR1Error, match="8bit is for a GPU"):
        bench_synthetic.measure("tiny", tiny, replace(QUICK, cache="8bit"), machine)


@pytest.mark.parametrize("config", [ModelConfig.from_hf(TINY), config_from_hf(DENSE)])
@pytest.mark.parametrize("cache", CACHES)
def test_noise_in_a_cache_is_numbers(config: Any, cache: str) -> None:
    made = KVCache(2, 64, cache_layout.on_gpu(config, cache))
    synthetic_run.fill_with_noise(made)
    values = made.rows.view(torch.float8_e4m3fn) if made.rows.dtype == torch.uint8 else made.rows
    values = values.double() * (1 if made.scales is None else made.scales.mean())
    assert values.isfinite().all() and 0.5 < values.std() < 4


@pytest.mark.parametrize("with_amx", [False, True])
def test_a_share_above_the_limit_is_refused(
    with_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for prompts on AMX, which does more than the int8 peak."""
    monkeypatch.setattr(amx, "in_use", lambda: with_amx)
    bench_synthetic.refuse_impossible([{"name": "decode", "share": 1.01}])
    for name in ("decode", "prefill"):
        rows = [{"name": name, "share": 1.1}]
        if with_amx and name == "prefill":
            bench_synthetic.refuse_impossible(rows)
            continue
        with pytest.raises(LocalR1Error, match="measured badly"):
            bench_synthetic.refuse_impossible(rows)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--synthetic"], USAGE),
        (["deepseek-r1", "--stub"], USAGE),
        (["deepseek-r1", "--synthetic", "--layers", "3"], USAGE),
        (["deepseek-r1", "--synthetic", "--context", "8"], USAGE),
        (["deepseek-r1", "--synthetic", "--vram", "much"], USAGE),
        (["deepseek-r1", "--synthetic", "--tokens", "0"], USAGE),
        (["deepseek-r1", "--synthetic", "--quant", "IQ1_S"], UNSUPPORTED),
        (["deepseek-r1", "--synthetic", "--threads", "0"], USAGE),
        (["deepseek-r1", "--synthetic", "--seconds", "3"], USAGE),
        (["deepseek-r1", "--synthetic", "--formats", "Q4_K"], USAGE),
        (["deepseek-r1", "--synthetic", "--context", "8x"], USAGE),
        (["deepseek-r1", "--synthetic", "--context", "1000k"], USAGE),
        (["deepseek-r1", "--synthetic", "--device", "tpu"], USAGE),
        (["tiny-r1", "--synthetic"], UNSUPPORTED),
        (["r1-distill-7b", "--synthetic", "--device", "cpu", "--stub"], USAGE),
        (["unheard-of", "--synthetic"], NOT_FOUND),
    ],
)
def test_what_cannot_be_measured_is_said(words: list[str], code: int) -> None:
    done = CliRunner().invoke(cli.app, ["bench", *words], standalone_mode=False)
    assert done.return_value == code, done.output


def test_more_ram_than_there_is_is_refused(tiny: ModelConfig, machine) -> None:
    with pytest.raises(DoesNotFit) as refused:
        bench_synthetic.measure("t", tiny, replace(QUICK, ram=1 << 50), machine)
    assert refused.value.code == NO_MEMORY


@pytest.mark.parametrize("name", ["threads", "vram", "ram", "device"])
def test_settings_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LOCALR1_{name.upper()}", "wrong")
    words = ["bench", "deepseek-r1", "--synthetic"]
    done = CliRunner().invoke(cli.app, words, standalone_mode=False)
    assert done.return_value == USAGE and "wrong" in done.stderr


def test_a_gpu_that_is_not_there_is_refused() -> None:
    words = ["bench", "r1-distill-7b", "--synthetic", "--device", "cuda", "--context", "8k"]
    done = subprocess.run(
        [sys.executable, "-m", "localr1", *words],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == UNSUPPORTED and "GPU" in done.stderr.splitlines()[0]


def test_float_weights_are_ordinary_numbers(tiny: ModelConfig) -> None:
    weights = SyntheticWeights(tiny, "BF16", experts_of(tiny), GIB)
    for name in ("blk.1.ffn_gate_exps.weight", "blk.0.attn_output.weight"):
        numbers = (weights[name].parts[0].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        assert 0.015 < numbers.std() < 0.025
