"""Formulas a reader of a terminal can read."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localr1.chat.latex import readable


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\boxed{933}", "[933]"),
        (r"\boxed{\text{yes}}", "[yes]"),
        (r"\boxed{\dfrac{1}{2}}", "[1/2]"),
        (r"x^2 + y^{10} \le z_1", "x² + y¹⁰ ≤ z₁"),
        (r"\frac{-b \pm \sqrt{b^2-4ac}}{2a}", "(-b ± √(b²-4ac))/2a"),
        (r"\left(\frac{1}{3}\right)^{10}", "(1/3)¹⁰"),
        (r"\sum_{i=1}^{n} i", "∑ᵢ₌₁ⁿ i"),
        (r"\int_0^\infty e^{-x}\,dx", "∫₀^∞ e⁻ˣ dx"),
        (r"\sqrt[3]{8} = 2, \sqrt{x+1}", "∛8 = 2, √(x+1)"),
        (r"\sin x + \log_2 8", "sin x + log₂ 8"),
        (r"90^\circ", "90°"),
        (r"x \in \mathbb{R}, \alpha \neq \Omega", "x ∈ ℝ, α ≠ Ω"),
        (r"10^{-3}\,\text{m/s}", "10⁻³ m/s"),
        (r"a^{b/c}", "a^(b/c)"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "( 1 2\n3 4 )"),
        (r"5\% \text{ of } \$40", "5% of $40"),
        (r"\binom{n}{k} \equiv 1 \pmod{7}", "C(n, k) ≡ 1 (mod 7)"),
        (r"\vec{v} \cdot \overline{AB}", "v⃗ · overline(AB)"),
        (r"\unknown{x} + \other", r"\unknown{x} + \other"),
        ("\\", "\\"),
        (r"\frac{1}", "1/()"),
        ("}{", ""),
    ],
)
def test_formulas(source: str, text: str) -> None:
    assert readable(source) == text


@given(st.text(alphabet="\\{}^_[]abc12 &fracsqrtboxed", max_size=80))
def test_any_text_gives_a_text(source: str) -> None:
    assert isinstance(readable(source), str)


@pytest.mark.parametrize("source", ["{" * 4000, "\\frac" * 800, "^" * 4000, "\\sqrt{" * 700])
def test_deep_nesting_is_quick(source: str) -> None:
    began = time.process_time()
    readable(source)
    assert time.process_time() - began < 0.5
