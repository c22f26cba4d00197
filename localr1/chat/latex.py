r"""LaTeX formulas as one line of Unicode: `\frac{1}{2}x^2 \le \sqrt{y}` reads `1/2x² ≤ √y`.

For reading in a terminal, not for typesetting: what it does not know it leaves as it is.
"""

from __future__ import annotations

import re
import unicodedata

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}^_&]|\s+|[^\\{}^_&\s]|\\", re.DOTALL)
_MAX_DEPTH = 40

_SYMBOLS = dict(
    pair.split("=", 1)
    for pair in (
        "alpha=α beta=β gamma=γ delta=δ epsilon=ε varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ "
        "iota=ι kappa=κ lambda=λ mu=μ nu=ν xi=ξ pi=π rho=ρ sigma=σ tau=τ upsilon=υ phi=φ varphi=φ "
        "chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Phi=Φ Psi=Ψ "
        "Omega=Ω times=× cdot=· div=÷ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=• oplus=⊕ otimes=⊗ "
        "le=≤ leq=≤ leqslant=≤ ge=≥ geq=≥ geqslant=≥ ne=≠ neq=≠ approx=≈ equiv=≡ cong=≅ sim=∼ "
        "simeq=≃ propto=∝ ll=≪ gg=≫ mid=| parallel=∥ perp=⊥ to=→ rightarrow=→ leftarrow=← "
        "Rightarrow=⇒ Leftarrow=⇐ implies=⇒ iff=⇔ Leftrightarrow=⇔ leftrightarrow=↔ mapsto=↦ "
        "longrightarrow=⟶ uparrow=↑ downarrow=↓ in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ supset=⊃ "
        "supseteq=⊇ cup=∪ cap=∩ setminus=∖ emptyset=∅ varnothing=∅ forall=∀ exists=∃ neg=¬ lnot=¬ "
        "land=∧ wedge=∧ lor=∨ vee=∨ sum=∑ prod=∏ int=∫ oint=∮ partial=∂ nabla=∇ infty=∞ "
        "ldots=… cdots=⋯ dots=… vdots=⋮ therefore=∴ because=∵ angle=∠ triangle=△ square=□ "
        "blacksquare=■ checkmark=✓ prime=′ degree=° hbar=ℏ ell=ℓ Re=ℜ Im=ℑ aleph=ℵ langle=⟨ "
        "rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ lvert=| rvert=| lVert=‖ rVert=‖ vert=| Vert=‖ "
        "colon=: lbrace={ rbrace=} backslash=\\ pounds=£ euro=€"
    ).split()
)
_SPACES = {"quad": "  ", "qquad": "    ", ",": " ", ";": " ", ":": " ", " ": " ", "!": ""}
_SPACES |= {"\\": "\n", "\n": " ", "(": "", ")": "", "[": "", "]": ""}
_WORDS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf "
    "det dim ker deg gcd lcm mod bmod arg Pr".split()
)
_KEPT = frozenset(  # commands whose argument is shown as it is
    "text textbf textit textrm texttt mathrm mathbf mathit mathsf mathtt mathcal operatorname mbox "
    "boldsymbol bm mathscr mathfrak emph underline displaylimits".split()
)
_DROPPED = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr middle displaystyle textstyle limits "
    "nolimits hline label tag notag nonumber hfill hspace vspace phantom".split()
)
_ACCENTS = {"hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0305"}
_ACCENTS |= {"vec": "\u20d7", "dot": "\u0307", "ddot": "\u0308", "tilde": "\u0303"}
_ROOTS = {"": "√", "2": "√", "3": "∛", "4": "∜"}
_DOUBLE = dict(zip("RNZQCPEF", "ℝℕℤℚℂℙ𝔼𝔽", strict=True))
_BRACKETS = {"pmatrix": "()", "bmatrix": "[]", "vmatrix": "||", "cases": "{ ", "Bmatrix": "{}"}


def _pairs(text: str) -> dict[str, str]:
    """`a1 b2` -> {"a": "1", "b": "2"}."""
    return {pair[0]: pair[1] for pair in text.split()}


_UP = _pairs(
    "0⁰ 1¹ 2² 3³ 4⁴ 5⁵ 6⁶ 7⁷ 8⁸ 9⁹ +⁺ -⁻ =⁼ (⁽ )⁾ aᵃ bᵇ cᶜ dᵈ eᵉ fᶠ gᵍ hʰ iⁱ jʲ kᵏ lˡ mᵐ nⁿ oᵒ "
    "pᵖ rʳ sˢ tᵗ uᵘ vᵛ wʷ xˣ yʸ zᶻ Tᵀ ′′ ∘° °° **"
)
_DOWN = _pairs(
    "0₀ 1₁ 2₂ 3₃ 4₄ 5₅ 6₆ 7₇ 8₈ 9₉ +₊ -₋ =₌ (₍ )₎ aₐ eₑ hₕ iᵢ jⱼ kₖ lₗ mₘ nₙ oₒ pₚ rᵣ sₛ tₜ uᵤ "
    "vᵥ xₓ"
)


def readable(source: str) -> str:
    """A formula without its dollars, as text; a line break only where the formula has one."""
    text = _Reader(source).read()
    lines = (re.sub(r" +", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


class _Reader:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, source: str) -> None:
        self._tokens = _TOKEN.findall(source)
        self._at = 0
        self._depth = 0

    def read(self, until: str | None = None) -> str:
        """Everything up to the token `until` (taken too), or to the end."""
        parts = []
        while self._at < len(self._tokens):
            token = self._next()
            if token == until:
                break
            parts.append(self._one(token))
        return "".join(parts)

    def _next(self) -> str:
        token = str(self._tokens[self._at])
        self._at += 1
        return token

    def _one(self, token: str) -> str:
        if token == "{":
            return self._group()
        if token == "}":
            return ""
        if token in "^_":
            return _script(self._argument(), up=token == "^")
        if token == "&":
            return " "
        if token[0] == "\\" and len(token) > 1:
            return self._command(token[1:].rstrip("*"))
        return " " if token.isspace() else token

    def _group(self) -> str:
        if self._depth >= _MAX_DEPTH:
            return ""
        self._depth += 1
        text = self.read("}")
        self._depth -= 1
        return text

    def _argument(self) -> str:
        """What a command or `^` applies to: a group, a command, or one character."""
        while self._at < len(self._tokens) and self._tokens[self._at].isspace():
            self._at += 1
        if self._at == len(self._tokens) or self._tokens[self._at] == "}":
            return ""
        if self._depth >= _MAX_DEPTH:
            return self._next()
        self._depth += 1
        text = self._one(self._next())
        self._depth -= 1
        return text

    def _option(self) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at] == "[":
            self._at += 1
            return self.read("]")
        return ""

    def _command(self, name: str) -> str:
        if name in _SYMBOLS:
            return _SYMBOLS[name]
        if name in _SPACES:
            return _SPACES[name]
        if name in _WORDS:
            follows = self._tokens[self._at] if self._at < len(self._tokens) else ""
            return name + (" " if follows[:1].isalnum() or follows[:1] == "\\" else "")
        if name in _DROPPED:
            return self._dropped()
        if name in _KEPT:
            return self._argument()
        if name in _ACCENTS:
            text = self._argument()
            return text + _ACCENTS[name] if len(text) == 1 else f"{name}({text})"
        if name in ("begin", "end"):
            brackets = _BRACKETS.get(self._argument(), "")
            return brackets[:1] if name == "begin" else brackets[1:].strip()
        return self._structure(name)

    def _dropped(self) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at] == ".":
            self._at += 1  # \left. is a bracket that is not there
        return ""

    def _structure(self, name: str) -> str:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return f"{_atom(self._argument())}/{_atom(self._argument())}"
        if name == "sqrt":
            index = self._option().strip()
            return _ROOTS.get(index, _script(index, up=True) + "√") + _atom(self._argument())
        if name in ("boxed", "fbox"):
            return f"[{self._argument().strip()}]"
        if name in ("binom", "dbinom", "tbinom"):
            return f"C({self._argument()}, {self._argument()})"
        if name in ("mathbb", "Bbb"):
            text = self._argument()
            return _DOUBLE.get(text, text)
        if name in ("pmod", "pod"):
            return f"(mod {self._argument()})"
        if not name.isalpha():  # an escaped character, such as \\%
            return name
        in_braces = self._at < len(self._tokens) and self._tokens[self._at] == "{"
        return f"\\{name}{{{self._argument()}}}" if in_braces else f"\\{name}"


def _atom(text: str) -> str:
    """`text`, in brackets where it would not hold together without."""
    whole = all(c.isalnum() or c in ".,°′" or unicodedata.combining(c) for c in text)
    in_brackets = re.fullmatch(r"\([^()]*\)|\[[^\[\]]*\]", text)
    return text if text and (whole or in_brackets) else f"({text})"


def _script(text: str, up: bool) -> str:
    """A superscript or subscript in Unicode where each character has one, else with ^ or _."""
    text = text.strip()
    table = _UP if up else _DOWN
    if text and all(c in table for c in text):
        return "".join(table[c] for c in text)
    sign = "^" if up else "_"
    return sign + (text if len(text) == 1 else f"({text})") if text else ""
