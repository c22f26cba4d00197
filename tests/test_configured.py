"""`localr1 config`: values, where they came from, and the folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localr1.settings import SETTINGS, config_file
from tests.test_cli import Cli, Result, assert_error, run_cli
from tests.test_registry import write_config

__all__ = ["run_cli"]  # a fixture


def test_every_setting_and_its_source(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config('top_k = 7\nram = "48 GiB"\nvram = 24\n')
    monkeypatch.setenv("LOCALR1_THREADS", "1")
    rows = [line.split() for line in run_cli("config").out.splitlines()]
    assert [row[0] for row in rows[: len(SETTINGS)]] == list(SETTINGS)
    assert ["threads", "1", "LOCALR1_THREADS"] in rows
    assert ["top_k", "7", str(config_file())] in rows
    assert ["ram", "48", "GiB", str(config_file())] in rows
    assert ["vram", "24", "GiB", str(config_file())] in rows
    assert ["temperature", "0.6", "models.toml"] in rows
    assert ["seed", "not", "set", "default"] in rows
    shown = json.loads(run_cli("config", "--json").out)
    assert shown["settings"]["ram"] == {"value": 48 << 30, "source": str(config_file())}
    assert shown["settings"]["seed"] == {"value": None, "source": "default"}
    assert list(shown["settings"]) == list(SETTINGS)


def test_folders(run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_MODELS", str(tmp_path / "big"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places = {
        "settings": str(tmp_path / "config/localr1/config.toml"),
        "models": str(tmp_path / "big"),
        "state": str(tmp_path / "state/localr1"),
        "cache": str(tmp_path / "cache/localr1"),
    }
    assert json.loads(run_cli("config", "--json").out)["folders"] == places
    rows = [line.split() for line in run_cli("config").out.splitlines()]
    assert all([name, place] in rows for name, place in places.items())
    assert not (tmp_path / "big").exists() and not (tmp_path / "cache").exists()


def test_one_value(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("config", "temperature") == Result(0, "0.6\n", "")
    assert run_cli("config", "seed") == Result(0, "\n", "")
    monkeypatch.setenv("LOCALR1_RAM", "1.5TiB")
    assert run_cli("config", "ram").out == "1536 GiB\n"
    shown = {"name": "ram", "value": 1536 << 30, "source": "LOCALR1_RAM"}
    assert json.loads(run_cli("config", "ram", "--json").out) == shown


def test_mistakes(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_cli("config", "temprature")
    assert_error(result, 2, "no setting is called 'temprature'")
    assert "did you mean temperature?" in result.err
    assert "`localr1 config`" in run_cli("config", "xyzzy").err
    monkeypatch.setenv("LOCALR1_VRAM", "much")
    assert_error(run_cli("config"), 2, "LOCALR1_VRAM")


def test_a_model_that_is_not_here(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_MODEL", "nobody-knows-it")
    assert run_cli("config", "model") == Result(0, "nobody-knows-it\n", "")
