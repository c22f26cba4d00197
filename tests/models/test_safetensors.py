"""HF folders under GGUF names: values, views, experts, FP8, the MTP layer; damage is a sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from localr1.errors import BadFile, LocalR1Error, ModelNotFound, Unsupported
from localr1.models.config import ModelConfig
from localr1.models.gguf import GGUFFile
from localr1.models.safetensors import HFFolder
from tests import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return toy.hf_folder(tmp_path_factory.mktemp("hf") / "toy", toy.config())


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for shard in folder.glob("*.safetensors") for k, v in load_file(shard).items()}


def is_same(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    return bool(np.array_equal(ours.reshape(theirs.shape), theirs.float().numpy()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_of_a_sharded_folder(dtype: torch.dtype, tmp_path: Path):
    folder = toy.hf_folder(tmp_path / "hf", toy.config(), dtype=dtype)
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, theirs = HFFolder.open(folder), tensors_of(folder)
    seen = 0
    for name in model.names():
        weight = model[name]
        if "_exps" in name:
            layer, part = name.split(".")[1], name.split("_")[1]
            for e in range(8):
                hf = f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight"
                assert is_same(weight.dequantize(e), theirs[hf]), hf
            assert weight.shape[0] == len(weight.parts) == 8
            seen += 8
        else:
            seen += 1
    assert seen == len(theirs)
    assert is_same(model["token_embd.weight"].dequantize(), theirs["model.embed_tokens.weight"])
    bias = theirs["model.layers.2.mlp.gate.e_score_correction_bias"]
    assert is_same(model["blk.2.exp_probs_b.bias"].dequantize(), bias)
    assert model["output_norm.weight"].shape == (1, 128)


def test_weights_are_views_of_the_files(folder: Path):
    model = HFFolder.open(folder)
    for part in model["blk.1.ffn_up_exps.weight"].parts:
        assert not part.flags.writeable and not part.flags.owndata
    assert model.nbytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_names_are_those_of_the_gguf(folder: Path, tmp_path: Path):
    in_gguf = GGUFFile.open(toy.gguf(folder, tmp_path / "toy.gguf", layout="kv_b"))
    model = HFFolder.open(folder)
    assert set(model.names()) == set(in_gguf.names())
    for name in model.names():
        np.testing.assert_array_equal(model[name].dequantize(), in_gguf[name].dequantize())


def test_k_b_and_v_b_are_kv_b_in_two(folder: Path, tmp_path: Path):
    split = GGUFFile.open(toy.gguf(folder, tmp_path / "toy.gguf"))
    kv_b = HFFolder.open(folder)["blk.1.attn_kv_b.weight"].dequantize().reshape(4, 64, 64)
    k_b = split["blk.1.attn_k_b.weight"].dequantize()
    np.testing.assert_array_equal(k_b, kv_b[:, :32].transpose(0, 2, 1))
    np.testing.assert_array_equal(split["blk.1.attn_v_b.weight"].dequantize(), kv_b[:, 32:])


def test_fp8_with_block_scales(tmp_path: Path):
    """Sizes that no block of 128 divides; the scales of cut blocks count too."""
    config = toy.config(hidden_size=160, moe_intermediate_size=96, intermediate_size=288)
    plain = toy.hf_folder(tmp_path / "plain", config)
    folder = toy.fp8_folder(plain, tmp_path / "fp8")
    model, theirs = HFFolder.open(folder), tensors_of(folder)

    def expected(name: str) -> torch.Tensor:
        weight, scale = theirs[name].float(), theirs[f"{name}_scale_inv"]
        rows, cols = weight.shape
        tiles = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        return weight * tiles[:rows, :cols]

    q_a = model["blk.1.attn_q_a.weight"]
    assert q_a.format.name == "FP8_E4M3" and q_a.scales[0].shape == (1, 2)
    assert is_same(q_a.dequantize(), expected("model.layers.1.self_attn.q_a_proj.weight"))
    for e in range(8):
        name = f"model.layers.2.mlp.experts.{e}.down_proj.weight"
        assert is_same(model["blk.2.ffn_down_exps.weight"].dequantize(e), expected(name))
    assert not any("scale_inv" in name for name in model.names())
    weight = tensors_of(plain)["model.layers.1.self_attn.q_a_proj.weight"]
    error = np.abs(q_a.dequantize() - weight.numpy()).max()
    assert error <= 2**-4 * weight.abs().max()  # e4m3 keeps 3 bits of the mantissa: half a step


def test_mtp_layer_and_folder_made_from_a_gguf(tmp_path: Path):
    folder = toy.hf_folder_from_gguf(toy.TINY_R1, tmp_path / "hf", mtp=True)
    model, source = HFFolder.open(folder), GGUFFile.open(toy.TINY_R1)
    assert ModelConfig.from_hf(model.config) == ModelConfig.from_gguf(
        source.metadata, source.tensors
    )
    for name in ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head_head"):
        assert f"blk.4.nextn.{name}.weight" in model
    assert "blk.4.attn_q_a.weight" in model and "blk.4.ffn_up_exps.weight" in model
    again = GGUFFile.open(toy.gguf(folder, tmp_path / "again.gguf", "BF16"))
    assert again.names() == source.names()  # embedding and head of the MTP layer: not twice
    for name in ("blk.4.nextn.eh_proj.weight", "blk.2.attn_k_b.weight", "output.weight"):
        rounded = torch.from_numpy(source[name].dequantize()).bfloat16()
        assert is_same(again[name].dequantize(), rounded)
    without = GGUFFile.open(toy.gguf(folder, tmp_path / "no.gguf", mtp=False))
    assert not any(name.startswith("blk.4.") for name in without.names())


def test_announced_mtp_layer_without_weights(copy: Path):
    change_config(copy, num_nextn_predict_layers=1)
    assert ModelConfig.from_hf(HFFolder.open(copy).config).n_mtp_layers == 0


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def cut(folder: Path) -> None:
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:-1])


def rewrite_header(folder: Path, change: Callable[[dict], None]) -> None:
    path = first_shard(folder)
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def with_row(**changes: object) -> Callable[[Path], None]:
    def change(header: dict) -> None:
        next(v for k, v in header.items() if k != "__metadata__").update(changes)

    return lambda folder: rewrite_header(folder, change)


DAMAGE: dict[str, tuple[type[LocalR1Error], Callable[[Path], object]]] = {
    "no config": (ModelNotFound, lambda f: (f / "config.json").unlink()),
    "config not JSON": (BadFile, lambda f: (f / "config.json").write_text("{")),
    "config a list": (BadFile, lambda f: (f / "config.json").write_text("[]")),
    "config nested": (BadFile, lambda f: (f / "config.json").write_text("[" * 100_000)),
    "shard missing": (ModelNotFound, lambda f: first_shard(f).unlink()),
    "index missing": (ModelNotFound, lambda f: (f / "model.safetensors.index.json").unlink()),
    "index empty": (BadFile, lambda f: (f / "model.safetensors.index.json").write_text("{}")),
    "index leaves the folder": (
        BadFile,
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
    ),
    "shard empty": (BadFile, lambda f: first_shard(f).write_bytes(b"")),
    "header too long": (BadFile, lambda f: first_shard(f).write_bytes(b"\xff" * 64)),
    "header not JSON": (BadFile, lambda f: first_shard(f).write_bytes(struct.pack("<Q", 8) * 4)),
    "cut short": (BadFile, cut),
    "offsets past the end": (BadFile, with_row(data_offsets=[0, 1 << 60])),
    "offsets backwards": (BadFile, with_row(data_offsets=[8, 4])),
    "offsets missing": (BadFile, with_row(data_offsets=None)),
    "shape of another size": (BadFile, with_row(shape=[3, 3])),
    "shape negative": (BadFile, with_row(shape=[-1, -1])),
    "unknown tensor": (Unsupported, lambda f: rewrite_header(f, lambda h: h.update(x=h[max(h)]))),
    "other quantisation": (
        Unsupported,
        lambda f: change_config(f, quantization_config={"quant_method": "gptq"}),
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_sentence(what: str, copy: Path):
    kind, damage = DAMAGE[what]
    damage(copy)
    with pytest.raises(kind) as error:
        HFFolder.open(copy)
    assert "\n" not in str(error.value) and error.value.hint


def single(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], base: Path) -> Path:
    """`base` as one safetensors file, after `change`."""
    out = tmp_path / "single"
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = tensors_of(base)
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    return out


def test_missing_and_uneven_experts_are_named(folder: Path, tmp_path: Path):
    experts = "model.layers.1.mlp.experts"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{experts}.5.up_proj.weight"]
        tensors[f"{experts}.7.down_proj.weight"] = torch.zeros(3, 64)

    model = HFFolder.open(single(tmp_path, change, folder))
    with pytest.raises(BadFile, match="lacks expert 5"):
        model["blk.1.ffn_up_exps.weight"]
    with pytest.raises(BadFile, match=r"experts\.7\.down_proj"):
        model["blk.1.ffn_down_exps.weight"]
    with pytest.raises(BadFile, match=r"no tensor blk\.9"):
        model["blk.9.attn_norm.weight"]


def test_other_dtypes_and_missing_scales(folder: Path, tmp_path: Path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    model = HFFolder.open(single(tmp_path, change, folder))
    with pytest.raises(Unsupported, match="I8"):
        model["output.weight"]
    with pytest.raises(BadFile, match="weight_scale_inv is missing"):
        model["blk.0.attn_output.weight"]
