"""What is on disk: folders with manifests, what a name opens, and what rm touches."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from pathlib import Path

import pytest

from localr1 import registry, store
from localr1.errors import BadFile, LocalR1Error, ModelNotFound
from localr1.settings import models_folder
from localr1.store import Manifest, Stored, StoredFile


def put(model: str, quant: str, files: dict[str, bytes], complete: bool = True) -> Stored:
    """A model in the store, as a pull leaves it."""
    rows = tuple(
        StoredFile(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    )
    manifest = Manifest(model, quant, "someone/repo", "0" * 40, "MIT", complete, rows)
    stored = Stored(store.folder_of(model, quant), manifest)
    store.write(stored)
    for name, data in files.items():
        (stored.folder / name).write_bytes(data)
    return stored


def test_a_manifest_comes_back() -> None:
    stored = put(
        "deepseek-r1", "Q4_K_M", {"a-00002-of-00002.gguf": b"2", "a-00001-of-00002.gguf": b"1"}
    )
    assert store.at(stored.folder) == stored
    assert store.all_stored() == [stored] == store.stored_as("deepseek-r1")
    assert stored.folder == models_folder() / "deepseek-r1" / "Q4_K_M"
    assert stored.path.name == "a-00001-of-00002.gguf"
    assert (stored.name, stored.nbytes, stored.nbytes_here) == ("deepseek-r1:Q4_K_M", 2, 2)
    assert store.at(models_folder()) is None


def test_half_files_count_as_far_as_they_are() -> None:
    stored = put("hf:a/b", "Q8_0", {"x.gguf": b"12345678", "y[1].gguf": b"1234"}, complete=False)
    (stored.folder / "x.gguf").rename(stored.folder / f"x.gguf.0123{store.PART}")
    (stored.folder / "y[1].gguf").rename(stored.folder / f"y[1].gguf.0123{store.PART}")
    assert (stored.nbytes, stored.nbytes_here) == (12, 12)
    assert stored.missing == ["x.gguf", "y[1].gguf"]


@pytest.mark.parametrize("model", ["..", "a/b", "hf:../x", "hf:a", "hf:a/b/..", "", ".hidden"])
def test_names_do_not_lead_elsewhere(model: str) -> None:
    if model == "hf:a":
        assert store.folder_of(model, "q").is_relative_to(models_folder())
        return
    with pytest.raises(ValueError, match="cannot be the name of a folder"):
        store.folder_of(model, "Q4_K_M")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": [{"name": "../../x", "nbytes": 1, "sha256": ""}]}', "\x00"]
)
def test_a_damaged_manifest_is_told(text: str) -> None:
    stored = put("deepseek-r1", "Q4_K_M", {"a.gguf": b"1"})
    (stored.folder / store.MANIFEST).write_text(text)
    with pytest.raises(BadFile, match="is damaged") as caught:
        store.at(stored.folder)
    assert "pull the model again" in caught.value.hint


def test_the_usual_quant_is_opened_else_the_largest() -> None:
    small = put("deepseek-r1", "Q2_K", {"s.gguf": b"1"})
    assert registry.resolve("r1").path == small.path
    large = put("deepseek-r1", "Q8_0", {"l.gguf": b"123"})
    assert registry.resolve("deepseek-r1").path == large.path
    usual = put("deepseek-r1", "Q4_K_M", {"u.gguf": b"12"})
    found = registry.resolve("deepseek-r1")
    assert (found.path, found.name, found.stored) == (usual.path, "deepseek-r1:Q4_K_M", usual)
    assert found.entry is registry.entries()["deepseek-r1"]
    assert registry.resolve("r1:q2_k").path == small.path
    with pytest.raises(ModelNotFound, match="deepseek-r1:Q6_K is not on this machine") as caught:
        registry.resolve("r1:Q6_K")
    assert caught.value.hint == "`localr1 pull deepseek-r1:Q6_K` fetches it"


def test_what_is_not_complete_is_not_opened() -> None:
    stored = put("deepseek-r1", "Q4_K_M", {"a.gguf": b"1"}, complete=False)
    with pytest.raises(ModelNotFound, match="the download of deepseek-r1:Q4_K_M is not complete"):
        registry.resolve("r1")
    store.write(Stored(stored.folder, dataclasses.replace(stored.manifest, complete=True)))
    assert registry.resolve("r1").path == stored.path
    (stored.folder / "a.gguf").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"a\.gguf of deepseek-r1:Q4_K_M is missing or cut"):
        registry.resolve("r1")


def test_a_path_into_the_store_knows_its_sums() -> None:
    stored = put("hf:a/b", "Q8_0", {"x.gguf": b"1"})
    assert registry.resolve(stored.folder / "x.gguf").stored == stored
    assert registry.resolve(stored.folder).stored == stored


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/../c", "hf:a/b/c"])
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(ModelNotFound, match="does not name a repository"):
        registry.resolve(text)


def test_removing_leaves_what_is_not_ours() -> None:
    first = put("hf:a/b", "Q8_0", {"x.gguf": b"1"})
    second = put("hf:a/b", "Q4_0", {"y.gguf": b"1"})
    (second.folder / f"z.gguf.00{store.PART}").touch()
    (second.folder / "notes.txt").write_text("mine")
    store.remove(first)
    assert not first.folder.exists() and second.path.is_file()
    store.remove(second)
    assert [path.name for path in second.folder.iterdir()] == ["notes.txt"]
    assert store.all_stored() == []


def test_removing_the_last_one_removes_its_folders() -> None:
    stored = put("hf:a/b", "Q8_0", {"x.gguf": b"1"})
    store.remove(stored)
    assert [path.name for path in models_folder().iterdir()] == [".locks"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    stored = put("deepseek-r1", "Q4_K_M", {"a.gguf": b"1"})
    elsewhere = tmp_path / "elsewhere"
    stored.folder.rename(elsewhere)
    stored.folder.symlink_to(elsewhere)
    assert registry.resolve("r1").path == stored.path
    with pytest.raises(LocalR1Error, match="is a link"):
        store.remove(stored)
    assert (elsewhere / "a.gguf").is_file()


def test_a_file_that_is_a_link_is_unlinked_only(tmp_path: Path) -> None:
    stored = put("deepseek-r1", "Q4_K_M", {"a.gguf": b"1"})
    stored.path.rename(tmp_path / "mine.gguf")
    stored.path.symlink_to(tmp_path / "mine.gguf")
    assert registry.resolve("r1").path == stored.path
    store.remove(stored)
    assert (tmp_path / "mine.gguf").read_bytes() == b"1" and not stored.folder.exists()


def test_one_at_a_time() -> None:
    stored = put("deepseek-r1", "Q4_K_M", {"a.gguf": b"1"})
    errors: list[BaseException] = []

    def remove() -> None:
        try:
            store.remove(stored)
        except LocalR1Error as error:
            errors.append(error)

    with store.locked("deepseek-r1", "Q4_K_M"), store.locked("deepseek-r1", "Q8_0"):
        thread = threading.Thread(target=remove)
        thread.start()
        thread.join()
    assert "another localr1 is at work on deepseek-r1:Q4_K_M" in str(errors[0])
    store.remove(stored)
    assert store.all_stored() == []
