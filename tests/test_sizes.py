"""Sizes as people write them, and the settings that take them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localr1.errors import LocalR1Error
from localr1.settings import Settings, models_folder
from localr1.sizes import GIB, Size, Tokens, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24GiB", 24 * GIB),
        ("24", 24 * GIB),
        (24, 24 * GIB),
        (0.5, GIB // 2),
        ("382 GB", 382 * 10**9),
        (" 1.5 tib ", 3 * GIB * 512),
        ("100b", 100),
        ("0", 0),
    ],
)
def test_sizes(text: str | float, nbytes: int) -> None:
    assert Size(text) == nbytes
    assert copy.deepcopy(Size(text)) == pickle.loads(pickle.dumps(Size(text))) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "24 g", "24 Gib/s", "-1", "nan", "inf", "1e999", "2x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        Size(text)
    with pytest.raises(LocalR1Error, match="it takes a size such as 24GiB"):
        Settings({"ram": text})


@pytest.mark.parametrize(
    ("text", "tokens"), [("16k", 16_384), ("16384", 16_384), (4096, 4096), (" 128K ", 131_072)]
)
def test_tokens(text: str | int, tokens: int) -> None:
    assert Tokens(text) == Settings({"context": text})["context"] == tokens


@pytest.mark.parametrize("text", ["", "k", "1.5k", "many", "16 kk", "0", "-1"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(LocalR1Error, match="it takes a number of tokens such as 16384 or 16k"):
        Settings({"context": text})


@given(st.integers(0, 1 << 50))
def test_a_bare_number_takes_the_agreed_unit(nbytes: int) -> None:
    assert parse_size(str(nbytes), bare=1) == nbytes


def test_the_folder_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "localr1" / "models"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".local/share/localr1/models"
    monkeypatch.setenv("LOCALR1_MODELS", "~/big")
    assert models_folder() == tmp_path / "big"
