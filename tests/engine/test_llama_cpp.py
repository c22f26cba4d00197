"""llama.cpp as the engine: its numbers, its memory, and how it fails; what holds for both engines
is tested with ours (test_engine.py, tests/chat/test_resume.py, tests/test_cli_talk.py).
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest

import localr1
from localr1.chat.transcript import Message
from localr1.engine import llama_cpp, llama_library
from localr1.engine.choice import choose
from localr1.engine.llama_plan import LlamaModel
from localr1.engine.sampler import SamplingParams
from localr1.errors import BadFile, DoesNotFit, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.models.gguf import GGUFFile
from localr1.models.source import open_source, read_text
from offload.placement import Tier
from tests import oracles, toy
from tests.models.samples import smollm2
from tests.models.test_hostile_gguf import mutants

pytest.importorskip("llama_cpp")

ROOT = Path(__file__).parents[2]
QUESTIONS = ("What is 347 + 586?", "Sort 5, 3, 9.", "Which is larger, 3 or 5?", "Hello!")
N_MUTANTS = 90
# Of one question in 17 tokens, float16 keys and other sums: 4e-4 when this was written. A wrong
# scale or a wrong rope gives more than 0.1.
MOST_KL = 5e-3


def load(path: str | Path = "tiny-r1", **options: object) -> localr1.LLM:
    """In one thread: llama.cpp's wait for each other busily, which a busy machine punishes."""
    return localr1.load(str(path), engine="llama.cpp", threads=1, **options)


@pytest.fixture(scope="module")
def llm() -> localr1.LLM:
    return load(context=1024)


def last_row(llm: localr1.LLM, ids: list[int]) -> np.ndarray:
    """Logits `[1, vocab]` behind a prompt, safe from llama.cpp's next call."""
    *_, logits = llm.engine.prefill(ids)
    return logits.numpy().copy()


def test_its_logits_are_ours_within_quantisation(llm: localr1.LLM) -> None:
    ours = localr1.load("tiny-r1", context=1024, threads=1, engine="hybrid")
    ids = [ours.template.encode([Message("user", text)]).ids for text in QUESTIONS]
    kl = oracles.mean_kl([ours.logits(text) for text in ids], [llm.logits(text) for text in ids])
    assert 0 < kl < MOST_KL


def test_its_logits_are_what_its_own_package_computes(llm: localr1.LLM) -> None:
    ids = llm.template.encode([Message("user", QUESTIONS[0])]).ids
    (theirs,) = oracles.llama_cpp_logits(toy.TINY_R1, [ids])
    assert np.abs(llm.logits(ids) - theirs).max() < 1e-4  # the order of sums


def test_a_step_reads_what_a_prompt_reads(llm: localr1.LLM) -> None:
    ids = llm.template.encode([Message("user", QUESTIONS[0])]).ids
    whole = llm.logits(ids)
    rows = [last_row(llm, ids[:5])]
    rows += [llm.engine.step(token).numpy().copy() for token in ids[5:]]
    assert oracles.mean_kl([whole[4:]], [np.concatenate(rows)]) < MOST_KL


def test_a_closed_prompt_stops_at_once_and_goes_on_alike() -> None:
    llm = load(smollm2(), context=1024)
    text = llm.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 30)[:256]
    began = time.perf_counter()
    expected = last_row(llm, text)
    whole = time.perf_counter() - began
    llm.logits([7, 8])  # another text takes the cache
    prompt = llm.engine.prefill(text)
    assert isinstance(next(prompt), Progress)
    began = time.perf_counter()
    prompt.close()
    assert time.perf_counter() - began < max(whole / 2, 0.1)
    assert llm.engine.position == 0 or llm.engine.ids == text[: llm.engine.position]
    assert oracles.mean_kl([last_row(llm, text)], [expected]) < MOST_KL


def test_loading_tells_how_far_it_is_and_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "_LOOK_SECONDS", 0.0005)
    told: list[Progress] = []
    load(smollm2(), context=256, progress=told.append)
    assert {(event.stage, event.unit) for event in told} == {("Loading", "bytes")}
    assert told[-1].done <= told[-1].total == smollm2().stat().st_size

    def interrupt(event: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(smollm2(), context=256, progress=interrupt)


def test_a_model_that_is_let_go_frees_its_memory() -> None:
    process, used = psutil.Process(), []
    for _ in range(4):
        llm = load(smollm2(), context=2048)
        llm.engine.logits([1, 2, 3])
        del llm
        gc.collect()
        used.append(process.memory_info().rss)
    assert used[-1] - used[1] < 40 << 20  # one context's buffers alone take 150 MB


def test_whole_layers_go_to_a_gpu_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: what is pretended is how much of it is free."""
    model = LlamaModel(open_source(smollm2()))
    assert model.n_layers == 30 and model.cache_bytes == 2 * 2 * 3 * 64
    counts = [model.whole_layers(vram, 2048) for vram in range(0, 1 << 30, 8 << 20)]
    assert counts == sorted(counts) and {0, 31} < set(counts)
    assert model.whole_layers(1 << 30, 1 << 20) < 31  # a long context takes layers' room
    found, layers = model.placement(2048, 8 << 30, 480 << 20)
    on_gpu = {name for name, tier in found.tiers.items() if tier is Tier.GPU}
    assert 1 < layers < 31 and found.fits
    assert {f"blk.{n}.attn_q.weight" in on_gpu for n in range(31 - layers, 30)} == {True}
    assert f"blk.{30 - layers}.attn_q.weight" not in on_gpu
    assert found.gpu_bytes + (256 << 20) <= 480 << 20
    monkeypatch.setattr(llama_library, "free_vram", lambda: 480 << 20)
    loaded = load(smollm2(), context=2048).engine.placement
    assert loaded is not None and loaded.gpu == found.gpu
    on_cpu = load(smollm2(), context=2048, device="cpu").engine.placement
    assert on_cpu is not None and not on_cpu.gpu


def test_what_does_not_fit_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(DoesNotFit, match="GiB of RAM"):
        load(smollm2(), ram="300MiB")
    with pytest.raises(Unsupported, match="cannot use a GPU"):
        load(smollm2(), device="cuda")


def test_an_8bit_cache_is_not_its_own() -> None:
    llm = localr1.load("tiny-r1", engine="llama.cpp", device="cpu", context=64, cache="8bit")
    (note,) = llm.engine.notes
    assert note.startswith("llama.cpp keeps its cache in 16 bits")


def test_nothing_of_its_log_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    llm = load(context=64)
    list(llm.generate([5, 6, 7], SamplingParams(max_tokens=3)))
    assert capfd.readouterr() == ("", "")


def test_another_architecture_goes_to_llama_cpp_and_says_why(tmp_path: Path) -> None:
    gemma = tmp_path / "gemma.gguf"
    content = smollm2().read_bytes()
    assert content.count(b"llama") < 40  # keys, and the name of the architecture
    gemma.write_bytes(content[:20_000].replace(b"llama", b"gemma") + content[20_000:])
    llm = localr1.load(str(gemma), context=256, threads=1)
    assert llm.chosen.engine == "llama.cpp"
    (note,) = llm.engine.notes
    assert "'gemma'" in note and note.endswith("so llama.cpp runs this model")
    assert len(list(llm.generate([1, 2, 3], SamplingParams(max_tokens=4)))) <= 4
    assert llm.engine.placement is not None and llm.engine.placement.ram_bytes > 98_000_000
    with pytest.raises(Unsupported, match="only llama"):
        _ = llm.config
    with pytest.raises(Unsupported, match="'gemma'"):
        localr1.load(str(gemma), engine="hybrid")


def test_what_neither_engine_knows_is_told_in_our_words(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(toy.TINY_R1.read_bytes().replace(b"deepseek2", b"deepseekX"))
    with pytest.raises(Unsupported, match="'deepseekX' are not supported") as caught:
        localr1.load(str(path))
    assert "nor can the other engine" in caught.value.hint


def test_what_it_cannot_load_is_told_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    content = toy.TINY_R1.read_bytes()
    path.write_bytes(content.replace(b"blk.2.attn_v_b", b"blk.2.attn_w_b"))
    source = open_source(path)
    with pytest.raises(BadFile, match=r"attn_v_b\.weight' not found") as caught:
        llama_cpp.load_llama_cpp(source, frozenset())
    assert "\n" not in str(caught.value) and caught.value.hint
    path.write_bytes(content.replace(b"expert_group_used_count", b"expert_group_used_Count"))
    with pytest.raises(BadFile, match="n_group_used > 0"):  # an assertion of llama.cpp's
        llama_cpp.load_llama_cpp(open_source(path), frozenset())
    load(context=64)  # and this process lives


def test_a_running_state_is_refused(tmp_path: Path) -> None:
    """A random Mamba: it forgets tokens as it goes, so no earlier one could be returned to."""
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    for key, value in GGUFFile.open(toy.TINY_R1).metadata.items():
        if key.startswith("tokenizer."):
            kind = gguf.GGUFValueType.get_type(value)
            number = type(value) is int
            writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if number else kind)
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 32}
    sizes |= {"feed_forward_length": 0, "attention.head_count": 0, "vocab_size": 768}
    sizes |= {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16}
    for key, value in (sizes | {"ssm.time_step_rank": 2}).items():
        writer.add_uint32(f"mamba.{key}", value)
    writer.add_float32("mamba.attention.layer_norm_rms_epsilon", 1e-5)
    shapes = {"token_embd.weight": (768, 32), "output_norm.weight": (32,)}
    layer = {"attn_norm.weight": (32,), "ssm_in.weight": (128, 32), "ssm_conv1d.weight": (64, 4)}
    layer |= {"ssm_conv1d.bias": (64,), "ssm_x.weight": (34, 64), "ssm_dt.weight": (64, 2)}
    layer |= {"ssm_dt.bias": (64,), "ssm_a": (64, 16), "ssm_d": (64,), "ssm_out.weight": (32, 64)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.full(shape, 0.01, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match="running state"):
        load(tmp_path / "mamba.gguf")


def test_folders_are_not_for_it(tmp_path: Path) -> None:
    folder = toy.hf_folder(tmp_path / "hf", toy.config())
    with pytest.raises(Unsupported, match="GGUF") as caught:
        load(folder)
    assert caught.value.code == 5 and "--engine hybrid" in caught.value.hint


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(Unsupported, match="not installed") as caught:
        load()
    assert caught.value.hint == "pip install 'localr1[llama-cpp]'"
    assert localr1.load("tiny-r1", context=64).chosen.engine == "hybrid"


def test_without_it_a_program_works() -> None:
    code = "import sys; sys.modules['llama_cpp'] = None\nfrom localr1.cli import main; main()"
    words = ["run", "tiny-r1", "--temperature", "0", "What is 347 + 586?"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "") and "933" in done.stdout


def test_an_older_one_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_library, "version", lambda name: "0.3.29")
    assert llama_library.missing() == "llama-cpp-python 0.3.29 is older than 0.3.30"


@pytest.mark.slow
def test_damaged_models_are_refused_or_run(tmp_path: Path) -> None:
    """In a child process, so that a crash of llama.cpp's is a failed test."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.test_llama_cpp", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    counts = json.loads(child.stdout)
    assert sum(counts.values()) == N_MUTANTS
    assert min(counts["refused"], counts["ran"], counts["refused by llama.cpp"]) > 1


def run_mutants(folder: Path) -> Counter[str]:
    """What became of each damaged copy of tiny-r1."""
    counts: Counter[str] = Counter()
    path = folder / "mutant.gguf"
    for what, content in mutants(toy.TINY_R1, N_MUTANTS):
        path.write_bytes(content)
        try:
            source = open_source(path)
            tokenizer, _ = read_text(source)
            choose("llama.cpp", source)
        except LocalR1Error:
            counts["refused"] += 1
            continue
        try:
            engine = llama_cpp.load_llama_cpp(source, tokenizer.stop_ids, context=64, threads=1)
            list(engine.stream([0, 764, 5, 9, 765, 766], SamplingParams(max_tokens=4, seed=1)))
            counts["ran"] += 1
        except LocalR1Error as error:
            assert str(error) and "\n" not in str(error), what
            counts["refused by llama.cpp"] += 1
    return counts


if __name__ == "__main__":
    print(json.dumps(run_mutants(Path(sys.argv[1]))))
