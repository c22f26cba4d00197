"""pull, rm, list, show and verify as a shell sees them, against a hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from localr1 import machine, registry, store
from offload.hardware import on_paper
from tests import test_cli
from tests.hub import Hub, serving
from tests.test_cli import Cli, assert_error

ROOT = Path(__file__).parent.parent
run_cli = test_cli.run_cli  # the fixture
NAME = "hf:someone/tiny-GGUF"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the package's model under another name, and one that cannot be run."""
    tiny = registry.resolve("tiny-r1").path.read_bytes()
    hub = Hub(licence="apache-2.0")
    hub.add("someone/tiny-GGUF", {"tiny-Q8_0.gguf": tiny})
    hub.add("someone/mamba-GGUF", {"m-Q8_0.gguf": tiny.replace(b"deepseek2", b"mamba9999")})
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def test_from_the_hub_to_an_answer(hub: Hub, run_cli: Cli) -> None:
    pulled = run_cli("pull", NAME)
    (stored,) = store.all_stored()
    assert (pulled.code, pulled.out) == (0, f"{stored.path}\n")
    assert "licence apache-2.0" in pulled.err and "16.7 MB in 1 file\n" in pulled.err
    assert f"to {stored.folder}" in pulled.err and "checksums are the hub's" in pulled.err
    assert "\r" not in pulled.err, "no progress line where there is no terminal"
    for name in (NAME, f"{NAME}:q8_0", f"{NAME}:tiny-Q8_0.gguf", stored.path):
        asked = run_cli("run", name, "--temperature", "0", "What is 347 + 586?")
        assert "933" in asked.out
    assert run_cli("verify", NAME).out.startswith("ok ")
    again = run_cli("pull", f"{NAME}:Q8_0", "--json")
    assert "is here already" in again.err
    facts = json.loads(again.out)
    assert facts["path"] == str(stored.path) and facts["repository"] == "someone/tiny-GGUF"
    assert facts["files"] == {file.name: file.sha256 for file in stored.manifest.files}


GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "vram", "ram", "quant"),
    [
        ("deepseek-r1", 24, 400, "Q4_K_M"),
        ("deepseek-r1", 24, 240, "Q2_K"),
        ("deepseek-r1:7b", None, 32, "Q4_K_M"),
    ],
)
def test_the_plan_picks_the_quant(
    hub: Hub,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    vram: int | None,
    ram: int,
    quant: str,
) -> None:
    paper = on_paper(vram=vram and vram * GIB, ram=ram * GIB)
    monkeypatch.setattr(machine, "hardware", lambda **_: paper)
    entry = registry.parse(name)[0]
    row = entry.quants[quant]
    hub.add(row.repo, {row.pattern.replace("*", f"model-{quant}"): b"weights"})
    pulled = run_cli("pull", name)
    assert pulled.code == 0 and f"{entry.name}:{quant} fits" in pulled.err
    assert [stored.name for stored in store.all_stored()] == [f"{entry.name}:{quant}"]


def test_what_fits_nowhere_is_fetched_only_by_name(
    hub: Hub, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = on_paper(vram=None, ram=16 * GIB)
    monkeypatch.setattr(machine, "hardware", lambda **_: paper)
    refused = run_cli("pull", "deepseek-r1")
    assert_error(refused, 4, "no quant of deepseek-r1 fits here")
    assert "`localr1 pull deepseek-r1:" in refused.err and not hub.requests
    hub.add("unsloth/DeepSeek-R1-GGUF", {"DeepSeek-R1-Q4_K_M/r1-Q4_K_M.gguf": b"weights"})
    assert run_cli("pull", "deepseek-r1:Q4_K_M").code == 0


def test_damage_is_found_by_the_hubs_sum(hub: Hub, run_cli: Cli) -> None:
    run_cli("pull", NAME)
    (stored,) = store.all_stored()
    data = stored.path.read_bytes()
    stored.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for name in (NAME, stored.path):  # by name and by path
        changed = run_cli("verify", name)
        assert changed.code == 1 and changed.out.startswith("differs ")
        assert "another sum than the hub says" in changed.err
    stored.path.write_bytes(data[:-1])
    assert_error(run_cli("run", NAME, "hi"), 3, "missing or cut short")
    assert run_cli("pull", NAME).code == 0
    assert run_cli("verify", NAME).out.startswith("ok ")


def test_lists_say_what_is_here(hub: Hub, run_cli: Cli) -> None:
    run_cli("pull", NAME)
    hub.lie["m-Q8_0.gguf"] = b"x" * len(hub.repos["someone/mamba-GGUF"]["m-Q8_0.gguf"])
    assert run_cli("pull", "hf:someone/mamba-GGUF").code == 1
    rows = {row["name"]: row for row in json.loads(run_cli("list", "--json").out)["models"]}
    assert next(iter(rows)) == "tiny-r1" and rows["deepseek-r1"]["path"] is None
    (here,) = rows[NAME]["quants"]
    assert (here["quant"], here["complete"]) == ("Q8_0", True)
    assert rows[NAME]["bytes"] == here["bytes"] == here["bytes_here"]
    (half,) = rows["hf:someone/mamba-GGUF"]["quants"]
    assert not half["complete"] and rows["hf:someone/mamba-GGUF"]["path"] is None
    text = run_cli("list").out
    assert "Q8_0  15.95 MiB" in text and "0.00 MiB of 15.95 MiB" in text


def test_show_what_is_here_and_what_is_not(hub: Hub, run_cli: Cli) -> None:
    run_cli("pull", NAME)
    shown = run_cli("show", NAME).out
    assert "someone/tiny-GGUF at 000000000000" in shown and "16 routed, 4 a token" in shown
    known = run_cli("show", "r1")
    assert known.code == 0 and "deepseek-r1 is not on this machine" in known.out
    assert "376.65 GiB  unsloth/DeepSeek-R1-GGUF  the usual one" in known.out
    assert "not verified" in known.out and "163,840 tokens" in known.out
    facts = json.loads(run_cli("show", "r1", "--json").out)
    assert facts["path"] is None and facts["config"]["n_routed_experts"] == 256
    assert facts["hint"] == "`localr1 pull deepseek-r1` fetches it"
    assert_error(run_cli("show", "hf:someone/else"), 3, "is not on this machine")


def test_show_tells_sizes_of_what_cannot_be_run(hub: Hub, run_cli: Cli) -> None:
    run_cli("pull", "hf:someone/mamba-GGUF")
    shown = run_cli("show", "hf:someone/mamba-GGUF")
    assert shown.code == 0 and "mamba9999" in shown.out and "15.7 M parameters" in shown.out
    assert json.loads(run_cli("show", "hf:someone/mamba-GGUF", "--json").out)["config"] is None
    assert_error(run_cli("run", "hf:someone/mamba-GGUF", "hi"), 5, "mamba9999")


def test_rm_asks_for_yes(hub: Hub, run_cli: Cli) -> None:
    run_cli("pull", NAME)
    assert_error(run_cli("rm", NAME), 2, "there is no terminal to ask on")
    assert len(store.all_stored()) == 1
    gone = run_cli("rm", f"{NAME}:Q8_0", "--yes")
    assert (gone.code, gone.out) == (0, "") and f"removed {NAME}:Q8_0 (16.7 MB)" in gone.err
    assert store.all_stored() == []
    assert_error(run_cli("rm", NAME, "--yes"), 3, "is not on this machine")


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("", 1, 1), ("no", 1, 1)])
def test_rm_asks_on_a_terminal(hub: Hub, run_cli: Cli, answer: str, code: int, left: int) -> None:
    run_cli("pull", NAME)
    child = pexpect.spawn(sys.executable, ["-m", "localr1", "rm", NAME], cwd=ROOT, timeout=60)
    child.expect_exact(f"remove {NAME}:Q8_0 (16.7 MB)? [y/N] ")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, len(store.all_stored())) == (code, left)


def test_what_pull_and_rm_do_not_touch(run_cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")
    for command in (("pull",), ("rm", "--yes")):
        assert_error(run_cli(*command, path), 1, "is a file of yours")
        assert_error(run_cli(*command, "tiny-r2"), 3, "no model is called 'tiny-r2'")
        assert_error(run_cli(*command, "deepseek-r1:Q9"), 3, "is not known as 'Q9'")
        assert_error(run_cli(*command, "hf:what"), 3, "does not name a repository")
    assert path.read_bytes() == b"GGUF"
    assert_error(run_cli("rm", "tiny-r1", "--yes"), 1, "part of localr1")
    shipped = run_cli("pull", "tiny-r1")
    assert (shipped.code, shipped.out.strip()) == (0, str(registry.resolve("tiny-r1").path))


def test_a_known_model_that_is_not_here(run_cli: Cli) -> None:
    for command in ("run", "verify", "chat"):
        result = run_cli(command, "deepseek-r1", stdin="hi")
        assert_error(result, 3, "deepseek-r1 is not on this machine")
        assert "hint:  `localr1 pull deepseek-r1` fetches it" in result.err


def test_a_terminal_shows_bytes_and_no_other_bar(hub: Hub) -> None:
    hub.seconds = 0.002
    child = pexpect.spawn(sys.executable, ["-m", "localr1", "pull", NAME], cwd=ROOT, timeout=60)
    child.expect(r"Downloading +\d\.\d of 0\.0 GB|Downloading +\d+\.\d of 16\.7 MB")
    child.expect_exact("checksums are the hub's")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and b"|" not in child.before


def test_a_full_disk_of_its_own(hub: Hub, tmp_path: Path) -> None:
    """A file system of 90 MB that somebody else fills meanwhile, in a namespace of ours."""
    disk = tmp_path / "disk"
    disk.mkdir()
    pull = f"{sys.executable} -m localr1 pull {NAME}"
    script = f"""
        mount -t tmpfs -o size=90m tmpfs {disk} || exit 77
        export LOCALR1_MODELS={disk}/models
        {pull} & pull=$!
        until find {disk} -name "*.part" -size +0 | grep -q .; do sleep 0.01; done 2>/dev/null
        dd if=/dev/zero of={disk}/other bs=64k 2>/dev/null
        wait $pull; echo "full: $?"
        {pull}; echo "small: $?"
        rm {disk}/other; {pull} >&2; echo "room: $?"
    """
    hub.seconds = 0.002
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if run.returncode == 77 or "unshare" in run.stderr:
        pytest.skip(
            "this system lets nobody mount in a namespace; test_download fills a file limit"
        )
    assert run.stdout.split("\n")[:3] == ["full: 1", "small: 1", "room: 0"]
    assert "error: the disk is full: " in run.stderr and "goes on from there" in run.stderr
    assert "more on the disk, and " in run.stderr and "of it still to come" in run.stderr
