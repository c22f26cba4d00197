"""A dense model as a shell sees it: every command that takes a file takes one of these."""

from __future__ import annotations

import json

import pytest

from localr1 import machine
from offload.hardware import on_paper
from tests import test_cli, toy_dense
from tests.test_cli import Cli

run_cli = test_cli.run_cli  # the fixture


@pytest.fixture(scope="module", params=["gguf", "folder"])
def path(request, tmp_path_factory) -> str:
    config = toy_dense.config("qwen3", toy_dense.YARN)
    folder = toy_dense.hf_folder(tmp_path_factory.mktemp("dense") / "hf", config)
    if request.param == "folder":
        return str(folder)
    return str(toy_dense.gguf_file(folder, folder.parent / "toy-F32.gguf"))


def test_run(path: str, run_cli: Cli) -> None:
    done = run_cli("run", path, "--temperature", "0", "--max-tokens", "5", "--json", "hello")
    assert done.code == 0
    assert json.loads(done.out.splitlines()[-1])["stats"]["completion_tokens"] == 5


def test_show(path: str, run_cli: Cli) -> None:
    shown = run_cli("show", path).out
    assert "qwen3, 3 layers, hidden size 128, 4 heads that share 2 of keys and values" in shown
    assert "512 tokens (YaRN, 4 times 128)" in shown and "experts" not in shown
    assert json.loads(run_cli("show", path, "--json").out)["config"]["n_kv_heads"] == 2


def test_plan(path: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = on_paper(vram=None, ram=8 << 30)
    monkeypatch.setattr(machine, "hardware", lambda *a, **k: paper)
    planned = run_cli("plan", path, "--json")
    assert planned.code == 0
    found = json.loads(planned.out)
    assert found["fits"] and "KV cache" in planned.out


def test_verify(path: str, run_cli: Cli) -> None:
    assert run_cli("verify", path).code == 0
