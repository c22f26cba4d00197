"""What the tests of AMX have in common."""

from __future__ import annotations

import pytest

from cpu_experts import amx


@pytest.fixture
def no_tier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALR1_ISA", raising=False)


@pytest.fixture
def on_amx(no_tier_is_named: None) -> None:
    """Its instructions end a process that has not been granted them. Most of these tests run with
    emulated tiles then, in a process of their own (test_bf16_experts.py).
    """
    if not amx.granted():
        pytest.skip("this CPU has no AMX")
