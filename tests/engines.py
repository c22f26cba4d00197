"""Both engines, for the tests that hold whichever computes the logits."""

from importlib.util import find_spec

import pytest

NEEDS_LLAMA_CPP = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
ENGINES = ["hybrid", pytest.param("llama.cpp", marks=NEEDS_LLAMA_CPP)]
