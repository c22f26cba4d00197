"""Every kernel compiles for every GPU we support, and fits the shared memory of those people own.

Needs no GPU. What is compiled is left in the cache, so a second run is quick.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable

import pytest

import localr1.gpu
from localr1.gpu import linear_configurations
from localr1.gpu.launch import Configuration
from localr1.gpu.warmup import answers

ARCHITECTURES = [80, 86, 89, 90, 120]
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}  # KiB a block
HELPERS = 2


def modules() -> list[str]:
    """Modules that say what they launch; the linear kernels have more than CI can compile."""
    found = []
    for info in pkgutil.iter_modules(localr1.gpu.__path__):
        name = f"localr1.gpu.{info.name}"
        own = getattr(importlib.import_module(name), "configurations", None)
        if own is not None and own.__module__ == name and name != linear_configurations.__name__:
            found.append(name)
    return found


def check(configurations: Iterable[Configuration], arch: int) -> None:
    for answer in answers({c.to_json(): None for c in configurations}, arch, HELPERS):
        assert "error" not in answer, answer
        assert answer["shared"] <= SHARED[arch] << 10, answer


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_of_a_layer(arch: int) -> None:
    check(
        (
            configuration
            for name in modules()
            for configuration in importlib.import_module(name).configurations(arch)
        ),
        arch,
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_linear_kernels(arch: int) -> None:
    check(linear_configurations.representative(arch), arch)


def test_what_ci_compiles_stands_for_all() -> None:
    """Kernels and formats are the same; all can be written down for a helper."""
    every = [c.to_json() for c in linear_configurations.configurations(86)]
    some = [c.to_json() for c in linear_configurations.representative(86)]

    def kinds(texts: list[str]) -> set[tuple[str, str]]:
        read = [json.loads(text) for text in texts]
        return {(fn["name"], constants["LOAD"]["name"]) for fn, _, constants, *_ in read}

    assert kinds(every) == kinds(some)
