"""GGUF files: what we read is what gguf-py reads; damage and strangeness end in a sentence."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from localr1.errors import BadFile, LocalR1Error, ModelNotFound, Unsupported
from localr1.models.gguf import GGUFFile
from tests import toy

KINDS = ["F32", "F16", "BF16", "Q8_0"]
U32, U64, STRING, ARRAY = 4, 10, 8, 9


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s.encode())) + s.encode()


def file_of(
    values: list[bytes] = (),
    rows: list[bytes] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """The bytes of a GGUF with these metadata values and table rows; `counts` may lie."""
    n_rows, n_values = counts or (len(rows), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, n_rows, n_values) + b"".join([*values, *rows])
    return head + bytes(-len(head) % 32) + data


def row(name: str = "w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def u32(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", U32, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return toy.hf_folder(tmp_path_factory.mktemp("gguf") / "hf", toy.config())


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_and_tensors_equal_gguf_py(kind: str, folder: Path, tmp_path: Path):
    path = toy.gguf(folder, tmp_path / "toy.gguf", kind)
    ours, theirs = GGUFFile.open(path), gguf.GGUFReader(path)
    assert ours.names() == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        values = gguf.dequantize(t.data, t.tensor_type)
        weight = ours[t.name]
        assert weight.shape == (values.shape if values.ndim > 1 else (1, *values.shape))
        np.testing.assert_array_equal(weight.dequantize(), values.reshape(weight.shape))
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        if isinstance(value, float):  # ours is the shortest decimal of the same float32
            value = float(np.float32(value))
        assert value == expected, key


def test_weights_are_views_of_the_file(folder: Path, tmp_path: Path):
    path = toy.gguf(folder, tmp_path / "toy.gguf", "Q8_0")
    model = GGUFFile.open(path)
    part = model["blk.1.ffn_gate_exps.weight"].parts[0]
    assert not part.flags.writeable and not part.flags.owndata
    start = model.tensors["blk.1.ffn_gate_exps.weight"].offset
    assert part.tobytes() == path.read_bytes()[start : start + part.nbytes]
    assert model.nbytes == path.stat().st_size


def test_version_2_is_read(write):
    model = GGUFFile.open(write(file_of([u32("a.b", 7)], [row()], bytes(128), version=2)))
    assert model.metadata == {"a.b": 7} and model["w"].shape == (1, 32)


@pytest.mark.parametrize("version", [0, 1, 4])
def test_other_versions_are_refused(version: int, write):
    with pytest.raises(Unsupported, match=f"version {version}"):
        GGUFFile.open(write(file_of(version=version)))


def test_big_endian_is_refused_by_name(write):
    content = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    with pytest.raises(Unsupported, match="big-endian"):
        GGUFFile.open(write(content))


def test_what_is_no_gguf(write, tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"nothing\.gguf"):
        GGUFFile.open(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFound):
        GGUFFile.open(tmp_path)
    with pytest.raises(BadFile, match="is empty"):
        GGUFFile.open(write(b""))
    with pytest.raises(BadFile, match="not a GGUF") as error:
        GGUFFile.open(write(b"version https://git-lfs.github.com/spec/v1\n"))
    assert "git lfs pull" in error.value.hint
    with pytest.raises(BadFile, match="not a GGUF") as error:
        GGUFFile.open(write(b"<!DOCTYPE html>"))
    assert "web page" in error.value.hint


def huge(count: int) -> bytes:
    return text("x") + struct.pack("<IIQ", ARRAY, STRING, count)


DAMAGED = {
    "values announced": file_of(counts=(0, 1 << 60)),
    "rows announced": file_of(counts=(1 << 63, 0)),
    "key length": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + bytes(64),
    "array length": file_of([huge(1 << 61)], data=bytes(64)),
    "key twice": file_of([u32("k", 1), u32("k", 2)]),
    "key not UTF-8": file_of([struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", U32, 1)]),
    "alignment 0": file_of([u32("general.alignment", 0)]),
    "alignment 48": file_of([u32("general.alignment", 48)]),
    "alignment text": file_of([text("general.alignment") + struct.pack("<I", STRING) + text("x")]),
    "no dimension": file_of(rows=[row(dims=())]),
    "5 dimensions": file_of(rows=[row(dims=(1,) * 5)]),
    "zero dimension": file_of(rows=[row(dims=(32, 0))]),
    "overflowing shape": file_of(rows=[row(dims=(1 << 63, 1 << 63))]),
    "product of shape": file_of(rows=[row(dims=(1 << 40, 1 << 40))]),
    "name twice": file_of(rows=[row(), row()], data=bytes(128)),
    "offset not aligned": file_of(rows=[row(offset=8)], data=bytes(256)),
    "offset past the end": file_of(rows=[row(offset=1 << 62)], data=bytes(128)),
    "data cut short": file_of(rows=[row()], data=bytes(127)),
    "half a block": file_of(rows=[row(dims=(48,), kind=8)], data=bytes(256)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_one_sentence(what: str, write):
    with pytest.raises(BadFile) as error:
        GGUFFile.open(write(DAMAGED[what]))
    message = str(error.value)
    assert "\n" not in message and error.value.hint


@pytest.mark.parametrize("values", [struct.pack("<I", 13), struct.pack("<IIQ", ARRAY, ARRAY, 0)])
def test_unknown_value_types_are_refused(values: bytes, write):
    with pytest.raises(Unsupported, match="not known"):
        GGUFFile.open(write(file_of([text("k") + values], data=bytes(64))))


@pytest.mark.parametrize(
    ("kind", "name"), [(144, "IQ4_KS"), (137, "IQ2_K"), (212, "Q4_K_R4"), (344, "IQ4_KS_R4")]
)
def test_ik_llama_types_are_refused_by_name(kind: int, name: str, write):
    model = GGUFFile.open(write(file_of(rows=[row(dims=(256,), kind=kind)], data=bytes(256))))
    assert model.tensors["w"].type_name == name
    with pytest.raises(Unsupported, match=rf"w is {name}, a type only ik_llama\.cpp knows"):
        model["w"]


@pytest.mark.parametrize(("kind", "name"), [(24, "I8"), (28, "F64"), (999, "type 999")])
def test_other_unsupported_types_are_refused_by_name(kind: int, name: str, write):
    model = GGUFFile.open(write(file_of(rows=[row(kind=kind)], data=bytes(256))))
    with pytest.raises(Unsupported, match=f"w is {name}"):
        model["w"]


def test_missing_and_four_dimensional_tensors(write):
    model = GGUFFile.open(write(file_of(rows=[row(dims=(2, 2, 2, 2))], data=bytes(128))))
    assert "w" in model and "nothing" not in model
    with pytest.raises(BadFile, match="no tensor nothing"):
        model["nothing"]
    with pytest.raises(Unsupported, match="4 dimensions"):
        model["w"]


@pytest.fixture
def shards(tmp_path: Path, folder: Path) -> list[Path]:
    """A model in three parts, split by gguf-py's writer."""
    source = GGUFFile.open(toy.gguf(folder, tmp_path / "whole.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "toy.gguf", "deepseek2", split_max_tensors=20)
    for name in source.names():
        weight = source[name]
        writer.add_tensor(name, weight.dequantize().reshape(source.tensors[name].shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("toy-*.gguf"))


def test_any_shard_opens_the_whole_model(shards: list[Path]):
    whole = GGUFFile.open(shards[0].with_name("whole.gguf"))
    assert len(shards) == 3
    for shard in shards:
        model = GGUFFile.open(shard)
        assert model.path == shards[0]
        assert set(model.names()) == set(whole.names())
        for name in whole.names():
            np.testing.assert_array_equal(model[name].dequantize(), whole[name].dequantize())


def test_missing_and_wrong_shards_are_named(shards: list[Path]):
    content = shards[2].read_bytes()
    shards[2].unlink()
    with pytest.raises(ModelNotFound, match=shards[2].name):
        GGUFFile.open(shards[0])
    shards[2].write_bytes(shards[1].read_bytes())
    with pytest.raises(BadFile, match="says it is part 2 of 3"):
        GGUFFile.open(shards[0])
    renamed = shards[2].with_name("alone.gguf")
    renamed.write_bytes(content)
    with pytest.raises(BadFile, match="says it is part 3 of 3"):
        GGUFFile.open(renamed)
    shards[2].write_bytes(file_of())
    with pytest.raises(BadFile, match="does not say which part"):
        GGUFFile.open(shards[0])


def test_shards_must_hold_all_tensors(shards: list[Path]):
    key = b"split.tensors.count" + struct.pack("<I", 5)
    content = shards[0].read_bytes()
    at = content.index(key) + len(key)
    wrong = struct.pack("<i", struct.unpack_from("<i", content, at)[0] + 1)
    shards[0].write_bytes(content[:at] + wrong + content[at + 4 :])
    with pytest.raises(BadFile, match="tensors together"):
        GGUFFile.open(shards[0])


def test_a_file_cut_anywhere_in_its_header(folder: Path, tmp_path: Path):
    content = toy.gguf(folder, tmp_path / "toy.gguf").read_bytes()
    end = GGUFFile.open(tmp_path / "toy.gguf").tensors["token_embd.weight"].offset
    path = tmp_path / "cut.gguf"
    for length in range(1, end, 397):
        path.write_bytes(content[:length])
        with pytest.raises(LocalR1Error):
            GGUFFile.open(path)


def test_r1_header_opens_in_a_second(tmp_path: Path):
    """1,086 tensors, 129,280 tokens and 127,741 merges, as in R1's files of the new layout."""
    tokens = [text(f"token{i}") for i in range(129_280)]
    merges = [text(f"left{i} right{i}") for i in range(127_741)]
    values = [
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, len(tokens)),
        *tokens,
        text("tokenizer.ggml.merges") + struct.pack("<IIQ", ARRAY, STRING, len(merges)),
        *merges,
        text("tokenizer.ggml.token_type") + struct.pack("<IIQ", ARRAY, 5, len(tokens)),
        np.ones(len(tokens), np.int32).tobytes(),
    ]
    rows = [row(f"blk.{i}.attn_q_b.weight", (32,), 0, 128 * i) for i in range(1086)]
    path = tmp_path / "r1.gguf"
    path.write_bytes(file_of(values, rows, bytes(128 * 1086), counts=(1086, 3)))
    start = time.perf_counter()
    model = GGUFFile.open(path)
    assert time.perf_counter() - start < 1
    assert (
        len(model.tensors) == 1086 and model.metadata["tokenizer.ggml.tokens"][-1] == "token129279"
    )
