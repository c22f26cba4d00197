"""400 damaged copies of a GGUF: each is read or refused in one sentence; nothing crashes or hangs.

Cuts anywhere, and flipped bits in the header, the metadata and the tensor table. `mutants` is also
there for tests that go further, e.g. that run a model on what still opens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localr1.errors import LocalR1Error
from localr1.models.gguf import GGUFFile
from localr1.models.source import read_config
from tests import toy, toy_dense

N_MUTANTS = 400
SEED = 7


def mutants(path: Path, count: int = N_MUTANTS, seed: int = SEED) -> Iterator[tuple[str, bytes]]:
    """(what was done, content) of `count` damaged copies of the GGUF at `path`.

    Every third is cut; the others have 1 to 8 bits flipped in front of the tensor data. Half of
    those leave the long vocabulary alone, which would else take nearly all of the hits.
    """
    content = path.read_bytes()
    source = GGUFFile.open(path)
    data_start = min(info.offset for info in source.tensors.values())
    words = content.find(b"tokenizer.ggml.tokens"), content.find(b"tokenizer.ggml.bos_token_id")
    places = [i for i in range(data_start) if not words[0] + 40 < i < words[1]]
    rng = random.Random(seed)
    for i in range(count):
        if i % 3 == 0:
            end = rng.randrange(data_start if i % 2 else len(content))
            yield f"cut at {end}", content[:end]
            continue
        damaged = bytearray(content)
        flips = [
            (rng.choice(places) if i % 2 else rng.randrange(data_start), rng.randrange(8))
            for _ in range(rng.choice((1, 1, 1, 2, 8)))
        ]
        for place, bit in flips:
            damaged[place] ^= 1 << bit
        yield f"flipped (byte, bit) {flips}", bytes(damaged)


@pytest.fixture(scope="module", params=["deepseek2", "llama"])
def small_gguf(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    if request.param == "llama":
        dense = toy_dense.config("llama", toy_dense.LLAMA3, num_hidden_layers=2)
        hf = toy_dense.hf_folder(folder / "hf", dense)
        return toy_dense.gguf_file(hf, folder / "small.gguf", "Q8_0")
    config = toy.config(num_hidden_layers=2, n_routed_experts=4, n_group=2, topk_group=1)
    config.num_experts_per_tok = 2
    return toy.gguf(toy.hf_folder(folder / "hf", config), folder / "small.gguf", "Q8_0")


def read_all(path: Path) -> None:
    """Open the model and touch its configuration and every byte of its weights."""
    model = GGUFFile.open(path)
    read_config(model)
    for name in model.names():
        for part in model[name].parts:
            part.sum()


def test_damaged_copies_are_read_or_refused(small_gguf: Path, tmp_path: Path):
    path = tmp_path / "mutant.gguf"
    refused = 0
    start = time.perf_counter()
    for what, content in mutants(small_gguf):
        path.write_bytes(content)
        try:
            read_all(path)
        except LocalR1Error as error:
            refused += 1
            assert str(error) and "\n" not in str(error) and error.hint, what
            assert len(str(error)) < 400, what
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
    assert time.perf_counter() - start < 60
    assert N_MUTANTS / 3 < refused < N_MUTANTS  # else the mutants test nothing


def test_every_cut_of_the_table_is_refused(small_gguf: Path, tmp_path: Path):
    """A file that ends inside its last tensor is the commonest damage: a broken download."""
    content = small_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    for end in (len(content) - 1, len(content) - 4096, len(content) // 2):
        path.write_bytes(content[:end])
        with pytest.raises(LocalR1Error, match="cut short"):
            GGUFFile.open(path)
