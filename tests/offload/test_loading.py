"""Residency as the loader uses it: the same logits, the right refusals, words for a user."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import localr1
from localr1 import cli
from localr1.engine import load as loading
from localr1.errors import BadFile, DoesNotFit, LocalR1Error
from localr1.events import Progress
from localr1.models import inventory
from localr1.models.source import open_source, read_config
from offload import syscalls
from offload.hardware import on_paper
from offload.residency import holder
from offload.workspace import PROGRAM
from tests import toy
from tests.offload.test_residency import refuse

IDS = [5, 17, 300, 42, 511]


def test_owned_and_mapped_give_the_same_logits() -> None:
    logits = {
        name: localr1.load("tiny-r1", context=64, residency=name).logits(IDS)
        for name in ("mapped", "owned")
    }
    np.testing.assert_array_equal(logits["mapped"], logits["owned"])


def test_a_folder_of_safetensors_too(tmp_path: Path) -> None:
    path = toy.hf_folder(tmp_path / "hf", toy.config())
    mapped, owned = open_source(path), open_source(path)
    weights = holder("owned", owned.files)
    list(weights.load())
    before = owned.nbytes
    owned.move_to(weights.files)
    assert owned.nbytes == before == mapped.nbytes
    for name in mapped.names():
        ours, theirs = owned[name], mapped[name]
        for a, b in zip(ours.parts, theirs.parts, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.ctypes.data != b.ctypes.data


def test_progress_is_in_bytes_and_reaches_the_end() -> None:
    seen: list[Progress] = []
    llm = localr1.load("tiny-r1", context=64, progress=seen.append)
    loads = [event for event in seen if event.stage == "Loading"]
    size = llm.path.stat().st_size
    assert loads[-1] == Progress("Loading", size, size, "bytes")
    assert [event.done for event in loads] == sorted(event.done for event in loads)


def test_an_unknown_residency_is_a_usage_error() -> None:
    with pytest.raises(LocalR1Error, match="'swap' is no residency") as caught:
        localr1.load("tiny-r1", residency="swap")
    assert caught.value.code == 2 and "owned" in caught.value.hint


@pytest.mark.parametrize("name", ["mapped", "owned"])
def test_a_file_cut_after_it_was_opened_is_a_bad_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copy(toy.TINY_R1, path)
    source = open_source(path)
    machine = on_paper(vram=None, ram=1 << 34)
    stock = inventory.from_source(source, read_config(source))
    found = loading.placement(path.name, stock, 64, machine, name)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadFile, match="changed while it was loaded"):
        loading._bring_in(source, name, found, lambda progress: None)


def test_no_memory_for_an_owned_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "anonymous", refuse(12))
    with pytest.raises(DoesNotFit) as caught:
        localr1.load("tiny-r1", context=64, residency="owned")
    assert "mapped" in caught.value.hint


def test_a_model_bigger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with a way out, unless mapping was asked for: then nothing is read in advance."""
    small = PROGRAM + (80 << 20)  # margin, workspace and cache fit, 16 MiB of weights do not
    for name in ("auto", "owned"):
        with pytest.raises(DoesNotFit) as caught:
            localr1.load("tiny-r1", context=64, ram=small, residency=name)
        assert "--residency mapped" in caught.value.hint
    seen: list[Progress] = []
    llm = localr1.load("tiny-r1", context=64, ram=small, residency="mapped", progress=seen.append)
    assert not [event for event in seen if event.stage == "Loading"]
    assert llm.logits(IDS).shape == (len(IDS), llm.config.vocab_size)
    with pytest.raises(DoesNotFit) as caught:
        localr1.load("tiny-r1", context=64, ram=1 << 20, residency="mapped")
    assert "--residency" not in caught.value.hint


def test_the_flag_reaches_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def load(model: str, **options: object) -> None:
        seen.update(options)
        raise LocalR1Error("stop here")

    monkeypatch.setattr(localr1, "load", load)
    flags = ["--residency", "owned", "--cache", "8bit"]
    monkeypatch.setattr("sys.argv", ["localr1", "run", "tiny-r1", "hi", *flags])
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    with pytest.raises(SystemExit):
        cli.main()
    assert (seen["residency"], seen["cache"]) == ("owned", "8bit")
