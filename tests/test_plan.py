"""`localr1 plan` as it is typed: verdicts, the card, JSON that adds up, reasons, exit codes."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localr1 import choices, cli, plan, registry
from localr1.errors import LocalR1Error
from offload.hardware import Hardware, on_paper
from tests import toy

ROOT, GIB = Path(__file__).parent.parent, 1 << 30


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `localr1 plan WORDS`."""
    monkeypatch.setattr("sys.argv", ["localr1", "plan", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *words: run(capsys, monkeypatch, *words)


def paper(vram: int, ram: int) -> Hardware:
    return on_paper(vram=vram * GIB or None, ram=ram * GIB)


def test_r1_on_24_and_382(say: Any) -> None:
    code, out, _ = say("deepseek-r1", "--vram", "24", "--ram", "382")
    assert code == 0
    assert out.startswith("deepseek-r1:Q4_K_M fits GPU and RAM with a context of 16,384 tokens.")
    assert all(len(line) <= 80 for line in out.splitlines())
    for word in ("MLA cache", "CUDA context", "margin", "workspace", "routed experts", "assumed"):
        assert word in out


def test_json_adds_up(say: Any) -> None:
    code, out, _ = say("deepseek-r1", "--vram", "24", "--ram", "382", "--context", "16k", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["model"], found["quant"], found["fits"]) == ("deepseek-r1", "Q4_K_M", True)
    assert found["context"] == 16_384
    for tier in ("gpu", "ram", "disk"):
        assert found[tier]["bytes"] == sum(item["bytes"] for item in found[tier]["items"])
    assert found["gpu"]["bytes"] < 24 * GIB and found["ram"]["bytes"] < 382 * GIB
    assert {"decode_tps", "prefill_tps", "decode_limit_tps"} <= found["predicted"].keys()
    assert 0 < found["predicted"]["decode_tps"] < found["predicted"]["decode_limit_tps"]
    assert found["alternatives"] and all("quant" in other for other in found["alternatives"])


@pytest.mark.parametrize(
    ("vram", "ram", "model", "quant", "code"),
    [
        ("24", "377", "deepseek-r1", "Q4_K_M", 0),
        ("24", "382GB", "deepseek-r1", "Q3_K_M", 0),
        ("24", "200", "deepseek-r1", "UD-Q2_K_XL", 0),
        ("24", "96", "deepseek-r1", "Q2_K_XS", 4),
        ("8", "16", "r1-distill-7b", "Q4_K_M", 0),
    ],
)
def test_verdicts(say: Any, vram: str, ram: str, model: str, quant: str, code: int) -> None:
    got, out, _ = say(model, "--vram", vram, "--ram", ram, "--json")
    found = json.loads(out)
    assert (got, found["quant"], found["fits"]) == (code, quant, code == 0)


def test_a_quant_that_does_not_fit_is_told_with_ways_out(say: Any) -> None:
    code, out, _ = say("r1:Q4_K_M", "--vram", "24", "--ram", "382GB")
    assert code == 4
    assert out.startswith("deepseek-r1:Q4_K_M does not fit: 11.")
    said = " ".join(out.partition("\n\n")[0].split())
    assert "with --residency mapped 13.6 GiB" in said
    assert re.search(r"again\. deepseek-r1:Q3_K_M fits, and writes \d+\.\d tokens/s\.$", said)
    assert "r1-distill" in out
    asked = say("r1", "--quant", "q4_k_m", "--vram", "24", "--ram", "382GB")
    assert asked[:2] == (code, out)


def test_r1_from_the_disk_names_a_model_that_fits(say: Any) -> None:
    _, out, _ = say("r1", "--vram", "24", "--ram", "96", "--json")
    found = json.loads(out)
    assert found["disk"]["bytes"] > 90 * GIB
    assert found["predicted"]["decode_tps"] < 1
    fitting = [other for other in found["alternatives"] if other["fits"]]
    assert fitting[0]["model"].startswith("r1-distill")
    assert fitting[0]["predicted"]["decode_tps"] > choices.QUICK_ENOUGH


def test_an_8bit_cache_is_smaller(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("r1", "--vram", "24", "--ram", "382", "--json")

    def cache_bytes(*flags: str) -> int:
        found = json.loads(say(*words, *flags)[1])
        assert found["cache"] == (flags or ["16bit"])[-1]
        return next(i["bytes"] for i in found["gpu"]["items"] if i["name"] == "MLA cache")

    assert cache_bytes() == 16_384 * 61 * 576 * 2
    assert cache_bytes("--cache", "8bit") == 16_384 * 61 * (576 + 8)
    code, _, err = say(*words, "--cache", "4bit")
    assert code == 2 and "--cache takes 16bit or 8bit" in err
    monkeypatch.setenv("LOCALR1_CACHE", "8bit")
    assert json.loads(say(*words)[1])["cache"] == "8bit"


def test_an_8bit_cache_is_named_where_it_helps(say: Any) -> None:
    words = ("r1-distill-7b:Q4_K_M", "--vram", "6", "--ram", "8", "--context", "128k")
    short = " ".join(say(*words)[1].split())
    assert "(131,072 would not fit; --cache 8bit makes room for 110,848)" in short
    other = json.loads(say(*words, "--json")[1])["alternatives"][0]
    assert (other["cache"], other["context"]) == ("8bit", 110_848)
    assert "with a context of 110,848 tokens" in say(*words, "--cache", "8bit")[1]
    _, out, _ = say("r1-distill-7b", "--vram", "0", "--ram", "16", "--cache", "8bit")
    assert "on the CPU the cache is kept in 32 bits" in out


def test_layers_on_the_cpu_are_named(say: Any) -> None:
    words = ("r1-distill-14b", "--vram", "3", "--ram", "32")
    code, out, _ = say(*words)
    said = " ".join(out.partition("\n\n")[0].split())
    assert code == 0
    assert said.endswith("layers 0-41 on the CPU (--cache 8bit leaves layers 0-38 there).")
    gpu, ram = re.search(r"^  (layers \S+) +(layers \S+)$", out, re.MULTILINE).groups()
    assert (gpu, ram) == ("layers 42-47", "layers 0-41")
    assert json.loads(say(*words, "--json")[1])["cpu_layers"] == 42
    _, why, _ = say(*words, "--explain", "blk.3.attn_q.weight")
    assert "the CPU runs layers 0-41 as a whole" in " ".join(why.split())
    assert json.loads(say("r1-distill-14b", "--vram", "8", "--json")[1])["cpu_layers"] == 0


def test_what_a_machine_can_run(say: Any) -> None:
    code, out, _ = say("--vram", "8", "--ram", "16")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "GPU" in rows["r1-distill-7b:Q4_K_M"] and "GiB short" not in rows["r1-distill-7b:Q4_K_M"]
    assert any(name.startswith("deepseek-r1") and "short" in row for name, row in rows.items())
    listed = json.loads(say("--vram", "8", "--ram", "16", "--json")[1])["models"]
    assert len(listed) == len(rows) - 1


def test_reasons(say: Any) -> None:
    machine = ("--vram", "24", "--ram", "382")
    _, gpu, _ = say("r1", *machine, "--explain", "blk.10.attn_output.weight")
    assert "VRAM" in gpu and "attention" in gpu
    _, ram, _ = say("r1", *machine, "--explain", "blk.60.ffn_down_exps.weight")
    assert "RAM" in ram and "8 of 256" not in ram and "given out before its turn" in ram
    _, row, _ = say("r1", *machine, "--explain", "token_embd")
    assert "looks up" in row
    code, _, err = say("r1", *machine, "--explain", "nonsense")
    assert code == 1 and "and others" in err and err.count("\n") == 2
    assert "attn_q_a, " in say("r1", *machine, "--explain", "atn_q_a")[2]


def test_a_file_is_planned_to_the_byte(say: Any) -> None:
    _, out, _ = say(str(toy.TINY_R1), "--ram", "4", "--json")
    found = json.loads(out)
    kinds = [item for item in found["ram"]["items"] if item["name"] not in
             ("MLA cache", "workspace", "program", "margin")]  # fmt: skip
    assert sum(item["bytes"] for item in kinds) == toy.TINY_R1.stat().st_size
    assert found["context"] == 2048


@pytest.mark.parametrize(
    "words",
    [
        ("r1", "--ram", "much"),
        ("r1", "--ram", "382", "--context", "long"),
        ("r1", "--ram", "382", "--ram-bandwidth", "-5"),
        ("--ram", "382", "--explain", "token_embd"),
    ],
)
def test_what_cannot_be_meant(say: Any, words: tuple[str, ...]) -> None:
    code, out, err = say(*words)
    assert (code, out) == (2, "") and err.startswith("error: ")


def test_unknown_models_and_quants(say: Any) -> None:
    assert say("deepsek-r1", "--ram", "382")[0] == 3
    assert say("r1", "--ram", "382", "--quant", "Q9_X")[0] == 5


def test_given_bandwidths_are_not_assumed(say: Any) -> None:
    slow = say("r1", "--vram", "24", "--ram", "382", "--ram-bandwidth", "100")[1]
    quick = say("r1", "--vram", "24", "--ram", "382", "--ram-bandwidth", "400")[1]
    assert "measured" not in slow and "given: RAM 100 GB/s" in slow
    assert slow.splitlines()[0] == quick.splitlines()[0]
    assert slow != quick
    assert "given: PCIe 7 GB/s" in say("r1", "--vram", "24", "--ram", "382", "--pcie", "7")[1]


def test_the_usual_quant_is_tried_first() -> None:
    entry = registry.entries()["deepseek-r1"]
    assert choices.quants(entry)[0] == "Q4_K_M"
    best = choices.best_quant(entry, paper(24, 1024))
    assert best is not None and best.quant == "Q4_K_M"
    with pytest.raises(LocalR1Error):
        plan.explain(best, "nothing")


def test_it_answers_within_a_second_and_without_torch() -> None:
    code = (
        "import sys; sys.argv = 'localr1 plan deepseek-r1 --vram 24 --ram 382'.split()\n"
        "import atexit\n"
        "heavy = ('torch', 'numba', 'rich', 'tokenizers')\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules]))\n"
        "from localr1.cli import main; main()"
    )
    seconds = []
    for _ in range(3):
        began = _seconds_of_children()  # of CPU time: other programs have theirs
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(_seconds_of_children() - began)
        assert done.stdout.endswith("HEAVY []\n"), done.stdout
    assert min(seconds) < 1


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
