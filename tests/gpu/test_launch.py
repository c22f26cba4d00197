"""Configurations, the disk cache, parallel compilation, and what the driver is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from localr1.gpu.launch import Configuration, GpuError, _described, launch
from localr1.gpu.warmup import answers


@triton.jit
def scale_kernel(x, add, out, n, factor, BLOCK: tl.constexpr, TWICE: tl.constexpr = False):
    """out = x * factor (+ add), twice that if asked for."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < n) * factor
    if add is not None:
        value += tl.load(add + place, mask=place < n)
    if TWICE:
        value *= 2
    tl.store(out + place, value, mask=place < n)


SIGNATURE = {"x": "*fp32", "out": "*fp32", "n": "i32", "factor": "fp32"}
PLAIN = Configuration(scale_kernel, SIGNATURE, {"add": None, "BLOCK": 64})


def test_launch(device: str) -> None:
    x, add = torch.randn(100, device=device), torch.randn(100, device=device)
    out = torch.full((100,), float("nan"), device=device)
    launch(scale_kernel, (2,), x, None, out, 100, 0.5, BLOCK=64)
    assert torch.equal(out, x * 0.5)
    launch(scale_kernel, (2,), x, add, out, 99, 2.0, BLOCK=64, TWICE=True)
    assert torch.allclose(out[:99], (x * 2 + add)[:99] * 2) and out[99] == x[99] * 0.5
    launch(scale_kernel, (100,), x[1:], None, out[:99], 99, 3.0, BLOCK=1)  # nothing is aligned
    assert torch.equal(out[:99], x[1:] * 3)


def test_empty_grid(device: str) -> None:
    launch(scale_kernel, (0,), *(torch.empty(0, device=device),) * 3, 0, 1.0, BLOCK=64)


def test_other_arguments_are_refused(device: str) -> None:
    x = torch.ones(4, device=device)
    with pytest.raises(TypeError, match="takes no str"):
        launch(scale_kernel, (1,), x, None, x, 4, "half", BLOCK=64)


def test_arguments_are_described_by_kind() -> None:
    x = torch.zeros(8)
    kinds, words = _described((x, x[1:], None, 5, 2**31, -1, 1.0))
    assert kinds == ("*fp32", "*fp32:1", None, "i32", "i64", "i32", "fp32")
    assert words == [x.data_ptr(), x.data_ptr() + 4, 5, 2**31, 2**64 - 1, 0x3F800000]


def run(code: str, folder: Path) -> str:
    """What a new process prints, with a cache of its own and no compiler on PATH."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CC")}
    environment = kept | {"XDG_CACHE_HOME": str(folder), "HOME": str(folder), "PATH": ""}
    command = [sys.executable, "-c", "from tests.gpu.test_launch import *\n" + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compiling_needs_no_gpu_and_leaves_triton_alone(tmp_path: Path) -> None:
    """Neither its driver, which looks for a GPU, nor its own cache; a second time nothing is made.

    A damaged file is made again.
    """
    facts = json.loads(
        run(
            """
from localr1.gpu import cubins
from triton.runtime.driver import driver
first = cubins.cubin(PLAIN, 89)
(path,) = cubins.folder().glob("*.cubin")
whole = path.read_bytes()
compiled, made = cubins.compiled, []
cubins.compiled = lambda *args: (made.append(1), compiled(*args))[1]
again = [cubins.cubin(PLAIN, 89) == first, len(made)]
path.write_bytes(whole[:-1])
again += [cubins.cubin(PLAIN, 89) == first, len(made), path.read_bytes() == whole]
path.write_bytes(b"")
again += [cubins.cubin(PLAIN, 89) == first, len(made)]
print(json.dumps({
    "again": again, "parameters": first.parameters, "name": first.name,
    "elf": first.code[:4].hex(), "driver": [driver._default, driver._active],
}))
""",
            tmp_path,
        )
    )
    assert facts["again"] == [True, 0, True, 1, True, True, 2]
    assert facts["parameters"] == ["x", "out", "n", "factor"]
    assert facts["name"] == "scale_kernel" and facts["elf"] == "7f454c46"
    assert facts["driver"] == [None, None]
    assert not (tmp_path / ".triton").exists()


def test_the_key_holds_all_that_decides_the_code(tmp_path: Path) -> None:
    changed = run(
        """
from dataclasses import replace
from localr1.gpu.cubins import key
variants = [
    PLAIN,
    replace(PLAIN, signature=SIGNATURE | {"x": "*bf16"}),
    replace(PLAIN, signature=SIGNATURE | {"x": "*fp32:1"}),
    replace(PLAIN, constants={"add": None, "BLOCK": 128}),
    replace(PLAIN, constants={"add": None, "BLOCK": 64, "TWICE": True}),
    replace(PLAIN, num_warps=8),
    replace(PLAIN, num_stages=3),
]
keys = {key(v, arch) for v in variants for arch in (86, 89)}
same = key(replace(PLAIN, constants={"TWICE": False, "BLOCK": 64, "add": None}), 86)
print(len(keys), same in keys)
""",
        tmp_path,
    )
    assert changed == "14 True\n"


def test_a_helper_has_the_keys_of_its_parent(tmp_path: Path) -> None:
    """In whichever order it is asked; else it leaves code where the parent does not look."""
    made = run(
        """
from localr1.gpu.cubins import key
from localr1.gpu.kernels import kernels
from localr1.gpu.sizes import R1
every = kernels(90, R1, {"Q4_K", "Q6_K", "Q8_0"}, set(), {"Q4_K"}, {"Q4_K"})
print(json.dumps([(c.to_json(), key(c, 90)) for c in every]))
""",
        tmp_path,
    )
    (tmp_path / "keys.json").write_text(made)
    for seed in range(3):
        code = f"""
import random
from localr1.gpu.cubins import key
every = json.loads(Path({str(tmp_path / "keys.json")!r}).read_text())
random.Random({seed}).shuffle(every)
print([text for text, wanted in every if key(Configuration.from_json(text), 90) != wanted])
"""
        assert run(code, tmp_path) == "[]\n"


def test_a_configuration_survives_the_way_to_another_process() -> None:
    copy = Configuration.from_json(PLAIN.to_json())
    assert copy.fn is scale_kernel and copy == PLAIN


def test_a_wrong_configuration_is_named() -> None:
    wrong: list[dict[str, Any]] = [{"add": None}, {"add": None, "BLOCK": 64, "BLOK": 1}]
    texts = [Configuration(scale_kernel, SIGNATURE, c).to_json() for c in wrong]
    errors = sorted(answer["error"] for answer in answers(texts, 90, helpers=1))
    assert errors == [
        "scale_kernel: missing ['BLOCK'], unknown []",
        "scale_kernel: missing [], unknown ['BLOK']",
    ]


def test_helpers_compile_once(tmp_path: Path) -> None:
    """Progress ends at the total; the second time there is nothing to do."""
    code = "from localr1.gpu.warmup import warmup\nprint(list(warmup([PLAIN, PLAIN], 86, 2)))"
    assert run(code, tmp_path) == "[(0, 1), (1, 1)]\n"
    assert run(code, tmp_path) == "[(0, 0)]\n"


def test_the_driver_is_missed_in_a_sentence() -> None:
    if not torch.cuda.is_available():
        from localr1.gpu.driver import _library

        with pytest.raises(GpuError, match="libcuda"):
            _library()
