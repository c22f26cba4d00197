"""How a text is cut into words before byte-level BPE merges them, by `tokenizer.ggml.pre` name.

A GGUF file carries the name of its pre-tokeniser, never the expressions; this table holds the
expressions of the models' own `tokenizer.json`. Each expression cuts every piece that the ones
before it left, and what it does not match stays a piece of its own. The regex engine is
Oniguruma (inside `tokenizers`), the one those files were written for: `&&` intersects classes,
`$` is the end of a line, `(?i:` folds case beyond ASCII.
"""

from __future__ import annotations

from dataclasses import dataclass

from localr1.errors import Unsupported

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# DeepSeek's first tokenisers list the letters that have a case, and those of CJK and Hangul.
# Escaped, because some of them are not in Unicode's composed form and an editor may "correct" them.
_CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

# Kimi writes a word as capitals then small letters, Han characters apart from all others.
_KIMI_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI_LEAD = r"[^\r\n\p{L}\p{N}]?"


@dataclass(frozen=True)
class PreTokenizer:
    """The expressions of one pre-tokeniser, in order, and what else its models do to a text.

    `ignore_merges`: a word that is in the vocabulary is that token, whatever the merges say.
    `nfc`: the text is put into Unicode's composed form first (Qwen).
    `adds_bos`: a prompt begins with a BOS in files that do not say whether it does.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False
    adds_bos: bool = False

    def as_json(self) -> dict[str, object]:
        """The `pre_tokenizer` section of a tokenizer.json that does the same."""
        steps: list[dict[str, object]] = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in self.patterns
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*steps, {**byte_level, "trim_offsets": True}]}


_QWEN2 = "|".join(
    (_CONTRACTION, r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", _SPACES)
)
_LLAMA3 = PreTokenizer(
    (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    ignore_merges=True,
    adds_bos=True,
)

PRETOKENIZERS = {
    "deepseek-v3": PreTokenizer(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        )
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            r"\p{N}",  # llama.cpp takes runs of digits; the same ids, as no merge joins digits
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,), nfc=True),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    # As qwen2, but a combining mark is part of a word.
    "qwen35": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        ),
        nfc=True,
    ),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "kimi-k2": PreTokenizer(
        (
            rf"[\p{{Han}}]+|{_KIMI_LEAD}{_KIMI_UPPER}*{_KIMI_LOWER}+{_CONTRACTION}?"
            rf"|{_KIMI_LEAD}{_KIMI_UPPER}+{_KIMI_LOWER}*{_CONTRACTION}?"
            rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    # What llama.cpp does with a file that names none.
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def pretokenizer_of(name: str) -> PreTokenizer:
    """The table's row for a `tokenizer.ggml.pre` value; `Unsupported` names an unknown one."""
    if name not in PRETOKENIZERS:
        raise Unsupported(
            f"the model's pre-tokeniser {name!r} is not one we know",
            "known are " + ", ".join(PRETOKENIZERS) + "; a wrong one would garble the text",
        )
    return PRETOKENIZERS[name]
