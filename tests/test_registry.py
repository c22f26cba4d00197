"""models.toml, what a MODEL argument means, and settings from their five layers."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from localr1 import registry
from localr1.errors import NOT_FOUND, USAGE, LocalR1Error, ModelNotFound
from localr1.models.config import ModelConfig
from localr1.models.shapes import weight_shapes
from localr1.settings import SETTINGS, Settings, config_file


def write_config(text: str) -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text(text, "utf-8")


def test_shipped_files_have_the_recorded_sums() -> None:
    entry = registry.entries()["tiny-r1"]
    assert entry.path is not None
    for name, recorded in entry.files.items():
        data = entry.path.with_name(name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == recorded
        assert len(data) <= 17 << 20


def test_names_and_aliases_are_used_once() -> None:
    names = [name for e in registry.entries().values() for name in (e.name, *e.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)


def test_models_are_sampled_as_settings_allow() -> None:
    for entry in registry.entries().values():
        Settings({}, model=entry.sampling)
        assert set(entry.sampling) <= set(SETTINGS)


@pytest.mark.parametrize("name", ["tiny-r1", "tiny", "TINY-R1"])
def test_a_name_is_a_model(name: str) -> None:
    found = registry.resolve(name)
    assert found.name == "tiny-r1"
    assert found.entry is registry.entries()["tiny-r1"]
    assert found.path.is_file()


def test_a_path_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "My Model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    for path in ("My Model.gguf", "./My Model.gguf", str(tmp_path / "My Model.gguf")):
        found = registry.resolve(path)
        assert (found.name, found.entry) == ("My Model", None)
        assert found.path.samefile(tmp_path / "My Model.gguf")
    assert registry.resolve(tmp_path).name == tmp_path.name
    assert registry.resolve(".").name == tmp_path.name


def test_a_home_folder_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.gguf").touch()
    assert registry.resolve("~/a.gguf").path == tmp_path / "a.gguf"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("tiny-r2", "no model is called 'tiny-r2'", "did you mean tiny-r1?"),
        ("xyzzy", "no model is called 'xyzzy'", "`localr1 list`"),
        ("", "no model is called ''", "`localr1 list`"),
        ("a/b.gguf", "there is no file or folder a/b.gguf", "check the path"),
        ("b.gguf", "there is no file or folder b.gguf", "check the path"),
    ],
)
def test_what_is_not_there_is_named(text: str, said: str, hint: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        registry.resolve(text)
    assert said in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.code == NOT_FOUND


def test_a_known_model_without_its_files_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    with pytest.raises(ModelNotFound, match="the files of tiny-r1 are not on this machine"):
        registry.resolve("tiny-r1")


def test_defaults_are_those_of_r1() -> None:
    settings = Settings({}, env={})
    assert (settings["temperature"], settings["top_p"], settings["model"]) == (0.6, 0.95, "tiny-r1")
    assert settings.source("top_p") == "default"


def test_each_layer_goes_before_the_next() -> None:
    write_config("temperature = 0.3\ntop_k = 7\n")
    model = {"temperature": 0.4, "top_k": 8, "top_p": 0.5, "min_p": 0.1}
    env = {"LOCALR1_TEMPERATURE": "0.2", "LOCALR1_SEED": "11", "LOCALR1_TOP_P": ""}
    settings = Settings({"temperature": 0.1, "seed": None}, model=model, env=env)
    got = {name: (settings[name], settings.source(name)) for name in SETTINGS}
    assert got["temperature"] == (0.1, "--temperature")
    assert got["seed"] == (11, "LOCALR1_SEED")
    assert got["top_k"] == (7, str(config_file()))
    assert got["top_p"] == (0.5, "models.toml")
    assert got["min_p"] == (0.1, "models.toml")
    assert got["max_tokens"] == (None, "default")


def test_zero_is_a_value() -> None:
    write_config("temperature = 0.3\n")
    assert Settings({"temperature": 0.0}, env={})["temperature"] == 0.0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TEMPERATURE", "warm"),
        ("TEMPERATURE", "-1"),
        ("TEMPERATURE", "nan"),
        ("TOP_P", "1.5"),
        ("TOP_K", "2.5"),
        ("THREADS", "0"),
    ],
)
def test_a_wrong_value_names_its_source(variable: str, value: str) -> None:
    with pytest.raises(LocalR1Error, match=f"LOCALR1_{variable}") as caught:
        Settings({}, env={f"LOCALR1_{variable}": value})
    assert value in str(caught.value)
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    "text", ["temperature = true", "top_k = 2.5", "top_k = [1]", "max_tokens = 0"]
)
def test_a_wrong_value_in_the_file_names_the_file(text: str) -> None:
    write_config(text)
    with pytest.raises(LocalR1Error, match=r"config\.toml"):
        Settings({}, env={})


@pytest.mark.parametrize("text", ["temprature = 1", "= 1", "\x00"])
def test_a_file_with_mistakes_is_refused(text: str) -> None:
    write_config(text)
    with pytest.raises(LocalR1Error, match=r"config\.toml"):
        Settings({}, env={})


def test_models_toml_holds_nothing_unknown() -> None:
    text = (registry.PACKAGE.parent / "models.toml").read_text("utf-8")
    fields = set(registry.ModelEntry.__slots__)
    for table in tomllib.loads(text).values():
        assert set(table) <= fields - {"name"}


@pytest.mark.parametrize(
    ("text", "name", "quant"),
    [
        ("deepseek-r1", "deepseek-r1", None),
        ("R1", "deepseek-r1", None),
        ("deepseek-r1:671b", "deepseek-r1", None),
        ("deepseek-r1:q4_k_m", "deepseek-r1", "Q4_K_M"),
        ("deepseek-r1:ud-q2_k_xl", "deepseek-r1", "UD-Q2_K_XL"),
        ("deepseek-r1:7b", "r1-distill-7b", None),
        ("deepseek-r1:7b:Q8_0", "r1-distill-7b", "Q8_0"),
        ("tiny-r1", "tiny-r1", None),
    ],
)
def test_a_name_may_carry_a_quant(text: str, name: str, quant: str | None) -> None:
    entry, found = registry.parse(text)
    assert (entry.name, found) == (name, quant)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("deepseek-r1:Q9", "deepseek-r1 is not known as 'Q9'", "Q4_K_M"),
        ("tiny-r1:Q4_K_M", "tiny-r1 is not known as 'Q4_K_M'", "ask for tiny-r1"),
        ("deepsek-r1", "no model is called", "did you mean deepseek-r1?"),
        ("xyzzy:Q4_K_M", "no model is called", "`localr1 list`"),
    ],
)
def test_an_unknown_quant_names_the_known_ones(text: str, said: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=said) as caught:
        registry.parse(text)
    assert hint in caught.value.hint


def test_every_model_can_be_had() -> None:
    for entry in registry.entries().values():
        if entry.source.startswith("package:"):
            assert entry.files
            continue
        assert entry.default_quant in entry.quants
        assert entry.config["hidden_size"] and entry.licence and entry.title
        for quant in entry.quants.values():
            assert quant.repo.count("/") == 1 and quant.pattern
            assert quant.nbytes is not None or not quant.verified


PARAMETERS = {  # billions, as their makers publish them
    "deepseek-r1": 671.0,
    "r1-0528": 671.0,
    "r1-zero": 671.0,
    "v3": 671.0,
    "v3-0324": 671.0,
    "v2-lite": 15.7,
    "coder-v2-lite": 15.7,
    "moonlight-16b": 16.0,
    "kimi-k2": 1026.4,
    "r1-distill-1.5b": 1.78,
    "r1-distill-7b": 7.62,
    "r1-distill-8b": 8.03,
    "r1-distill-14b": 14.8,
    "r1-distill-32b": 32.8,
    "r1-distill-70b": 70.6,
    "r1-0528-qwen3-8b": 8.19,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_configurations_have_the_published_number_of_parameters(name: str) -> None:
    config = registry.entries()[name].config
    moe = "n_routed_experts" in config
    counted = (moe_parameters if moe else dense_parameters)(config) / 1e9
    published = PARAMETERS[name]
    digits = 1 if published >= 10 else 2
    assert round(counted, digits) == published


def test_every_model_of_the_hub_has_its_parameters_checked() -> None:
    known = {name for name, entry in registry.entries().items() if entry.quants}
    assert known == set(PARAMETERS)


def moe_parameters(config: Mapping[str, Any]) -> int:
    """Without MTP, as "671 B" is counted; the latent projection in one of its two layouts."""
    shapes = weight_shapes(ModelConfig.from_hf(config))
    twice = (".attn_k_b.weight", ".attn_v_b.weight")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(twice))


def dense_parameters(c: Mapping[str, Any]) -> int:
    """Llama, Qwen2 and Qwen3: attention, a gated MLP, two norms a layer, embedding and head."""
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    width = c["head_dim"]
    attention = 2 * hidden * width * (heads + kv)
    if c["architectures"] == ["Qwen2ForCausalLM"]:
        attention += width * (heads + 2 * kv)  # biases
    if c["architectures"] == ["Qwen3ForCausalLM"]:
        attention += 2 * width  # norms of queries and keys
    layer = attention + 3 * hidden * c["intermediate_size"] + 2 * hidden
    tables = 1 if c["tie_word_embeddings"] else 2
    return int(c["num_hidden_layers"] * layer + tables * c["vocab_size"] * hidden + hidden)


def test_the_documented_table_is_that_of_models_toml() -> None:
    text = (registry.PACKAGE.parent / "docs" / "models.md").read_text("utf-8")
    for entry in registry.entries().values():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{entry.name}` |")]
        assert entry.source.removeprefix("hf:") in row or entry.files
        if quant := entry.quants.get(entry.default_quant):
            assert quant.nbytes is not None
            digits = f"{quant.nbytes / 1e9:.1f}".removesuffix(".0")
            assert f"{entry.default_quant}, {digits}" in row
