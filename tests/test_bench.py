"""`localr1 bench`: the figures mean what they say; how large they are is not tested."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import cpu_experts
import localr1
from cpu_experts.bench import fill, filled_memory, memories
from localr1 import bench, bench_kernels, cli
from localr1.errors import USAGE, LocalR1Error
from localr1.events import Progress
from localr1.models.gguf import GGUFFile
from localr1.progress import ProgressLine, line
from tools import check_benchmarks


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens and a small working set."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "PREFILL_TOKENS", (8, 1 << 20))
    monkeypatch.setattr(bench, "DECODE_TOKENS", 4)
    monkeypatch.setattr(bench, "last_cache_bytes", lambda: 32 << 20)


def test_the_last_line_is_json(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main("tiny-r1", as_json=False, threads=1)
    *card, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert set(result) == {"machine", "model", "limits", "rows"}
    assert result["model"] == "tiny-r1"
    phases = [(row["name"], row["phase"], row["tokens"]) for row in result["rows"]]
    assert phases == [
        ("load", "load", 0),
        ("prefill", "prefill", 8),  # what the context cannot hold is left out
        ("first token", "prefill", 8),
        ("decode", "decode", 4),
    ]
    assert all(row["value"] > 0 and row["threads"] == 1 for row in result["rows"])
    assert all(row["share"] is None for row in result["rows"])  # it fits the cache
    assert "tiny-r1 on " in card[0]


def test_a_share_where_the_model_is_larger_than_the_cache(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "last_cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(bench, "read_bandwidth", lambda caches: (1000.0, 1 << 30))
    result = bench.run("tiny-r1", threads=1)
    decode = result["rows"][-1]
    limit = 1000e9 / result["limits"]["bytes_per_token"]
    assert decode["share"] == pytest.approx(decode["value"] / limit)
    assert "of the limit" in bench.card(result)
    monkeypatch.setattr(bench, "read_bandwidth", lambda caches: (1e-6, 1 << 30))
    with pytest.raises(LocalR1Error, match="measured badly"):
        bench.run("tiny-r1", threads=1)


def test_bytes_of_a_token() -> None:
    """Counted by hand: a quarter of the experts, no MTP layer, one row of the embedding."""
    llm = localr1.load("tiny-r1")
    file = GGUFFile.open(llm.path)
    expected = 0
    for name in file.names():
        if name.startswith("blk.4.") or name == "token_embd.weight":
            continue
        expected += file[name].nbytes // (4 if "_exps" in name else 1)
    assert bench.bytes_per_token(file, llm.config) == expected


def test_bandwidth_is_that_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "last_cache_bytes", lambda: 1 << 20)
    speed, working_set = bench.read_bandwidth(4)
    assert 0.1 < speed < 10_000
    assert working_set == 1 << 28


def test_progress_is_for_terminals_only() -> None:
    silent, screen = io.StringIO(), Screen()
    for stream in (silent, screen):
        with ProgressLine(stream) as progress:
            progress.show(Progress("Compiling", 1, 10, "kernels"))
    assert silent.getvalue() == ""
    assert "Compiling   1 of 10 kernels" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")
    assert line(Progress("Summing", 2 * 10**9, 8 * 10**9, "bytes"), 1.0) == (
        "Summing   2.0 of 8.0 GB   2.0 GB/s   3 s left"
    )
    slow = Progress("Downloading", 250 * 10**6, 8 * 10**9, "bytes")
    assert line(slow, 10.0) == "Downloading   0.2 of 8.0 GB   25.0 MB/s   5 min 10 s left"
    assert line(slow, 0.0) == "Downloading   0.2 of 8.0 GB"


def test_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The card, then the line of JSON; shares that no machine can have are refused after it."""
    monkeypatch.setattr(bench_kernels, "working_set", lambda: 1 << 28)
    monkeypatch.setattr(bench_kernels, "MOST", 1e9)  # so small a set may lie in the cache
    bench_kernels.main("q4_k", 0.01, None, as_json=False)
    *card, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert set(result) == {"machine", "model", "limits", "rows"}
    assert result["model"] is None
    assert result["limits"]["working_set"] == 1 << 28
    asked = {(row["format"], row["phase"], row["tokens"]) for row in result["rows"]}
    few = {("Q4_K", "prefill", 8)} if cpu_experts.tier() == "avx512_vnni" else set()
    assert asked >= {("Q4_K", "decode", 1)} | few
    for row in result["rows"]:
        assert ("memory_share" in row) == (row["tokens"] == 8)
    assert any("of that of memory" in text for text in card) == bool(few)
    for row in result["rows"]:
        assert set(row) >= {"format", "phase", "tokens", "threads", "value", "unit", "share"}
        assert row["value"] > 0
        assert row["share"] > 0
    assert any("the most that fits" in text for text in card)
    monkeypatch.setattr(bench_kernels, "MOST", 1e-9)
    with pytest.raises(LocalR1Error, match="measured badly"):
        bench_kernels.main("Q4_K", 0.01, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"]


def test_flags_of_the_kernels() -> None:
    with pytest.raises(LocalR1Error, match="Q9_K") as error:
        bench_kernels.main("Q4_K, Q9_K", 1.0, None, as_json=True)
    assert "IQ4_XS" in error.value.hint
    for seconds in (0.0, float("nan"), float("inf")):
        with pytest.raises(LocalR1Error, match="above 0"):
            bench_kernels.main(None, seconds, None, as_json=True)


@pytest.mark.parametrize(
    "words",
    [
        "tiny-r1 --kernels",
        "--formats Q4_K",
        "--seconds 1",
        "--context 8k",
        "--kernels --device cpu",
        "--kernels --vram 4",
        "--kernels --ram 4",
        "--kernels --cache 8bit",
        "--kernels --threads 0",
        "--kernels --synthetic",
        "--threads 0",
    ],
)
def test_what_means_nothing_is_refused(words: str) -> None:
    done = CliRunner().invoke(cli.app, ["bench", *words.split()], standalone_mode=False)
    assert done.return_value == USAGE
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") <= 2


def test_the_kernels_take_the_setting_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_THREADS", "none")
    done = CliRunner().invoke(cli.app, ["bench", "--kernels"], standalone_mode=False)
    assert done.return_value == USAGE and "LOCALR1_THREADS" in done.stderr


def test_no_threads_are_refused() -> None:
    with pytest.raises(LocalR1Error, match="threads is 0"):
        localr1.load(threads=0)


@pytest.mark.parametrize(("name", "kind"), [("F32", "f4"), ("F16", "f2"), ("BF16", "u2")])
def test_floats_are_measured_on_ordinary_numbers(name: str, kind: str) -> None:
    """Of subnormal ones a product takes many times as long."""
    memory = filled_memory(1 << 20, "Q4_K")
    fill(memory, name)
    numbers = memory.view(kind)
    if name == "BF16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    numbers = numbers.astype(np.float64)
    assert np.isfinite(numbers).all() and 0.019 < numbers.std() < 0.021
    assert (abs(numbers) > 2.0**-24).mean() > 0.9999
    blocks = filled_memory(1 << 20, "Q4_K")
    kinds = [(kind, (m == blocks).all()) for kind, m in memories(["Q8_0", name, "Q4_K"], 1 << 20)]
    assert kinds == [("Q8_0", True), (name, False), ("Q4_K", True)]


def test_a_table_older_than_the_kernels_is_refused(tmp_path: Path) -> None:
    kernels, document = tmp_path / "kernels", tmp_path / "benchmarks.md"
    kernels.mkdir()
    (kernels / "a.py").write_text("x = 1\n")
    document.write_text("before\n")
    assert (
        check_benchmarks.complaint(document, kernels) == "benchmarks.md has no table of the kernels"
    )
    with pytest.raises(ValueError, match="no place"):
        check_benchmarks.write_table("| a |", check_benchmarks.kernel_hash(kernels), document)
    document.write_text(
        f"before\n{check_benchmarks.MARK.format('0' * 16)}\nold\n{check_benchmarks.END}\nafter\n"
    )
    assert "older" in str(check_benchmarks.complaint(document, kernels))
    check_benchmarks.write_table("| a |", check_benchmarks.kernel_hash(kernels), document)
    assert check_benchmarks.complaint(document, kernels) is None
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| a |" in text
    (kernels / "a.py").write_text("x = 2\n")
    assert "older" in str(check_benchmarks.complaint(document, kernels))
