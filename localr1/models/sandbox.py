"""Runs a chat template from a stranger's file, with bounds on what it may touch, make and spend.

jinja2's immutable sandbox keeps a template from Python's insides. On top of it: loop turns, calls
and filters are counted against a number and a clock, and operations that can make something big
are bounded, so that a hostile or broken template gives an error instead of a hang. What a template
may use is what transformers offers: loop controls, `raise_exception`, `strftime_now`, `tojson`,
`{% generation %}`. Not here: what the rendered text means (template.py).
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

_MAX_STEPS = 300_000  # loop turns, calls and filters of a rendering; R1's takes a few per message
_MAX_SECONDS = 3.0  # of this thread's own computing
_MAX_SIZE = 32 << 20  # characters of one text; a full 128K context is about half a MiB
_MAX_GROWTH = 1 << 28  # product of the operands of what can multiply a text; `replace` stays below
_MAX_NUMBER = 1 << 256  # beyond what any date or counter needs
_MAX_EXPONENT = 1 << 10

# methods of texts, and filters, that can make more than they are given
_GROWING = frozenset(
    "center expandtabs format format_map indent join ljust replace rjust tojson translate wordwrap "
    "xmlattr zfill".split()
)
_LONG_NUMBER = re.compile(r"[0-9]{5}")


class TooMuch(SecurityError):
    """The template spends or makes more than any honest one."""


class Sandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment for chat templates; renderings wait for one another."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.code_generator_class = _CountingCode
        self.filters["tojson"] = _tojson
        for name, function in self.filters.items():
            self.filters[name] = self._bounded_filter(name, function)
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
            namespace=_PlainNamespace,
            dict=lambda *args, **kwargs: dict(*args, **kwargs),  # not the class with its insides
        )
        del self.globals["lipsum"]
        self._steps, self._deadline = 0, 0.0
        self._rendering = threading.Lock()  # the count is one rendering's

    def render(self, template: jinja2.Template, values: Mapping[str, object]) -> str:
        """The text that the template makes of `values`. Raises whatever the template causes."""
        with self._rendering:
            self._steps, self._deadline = 0, time.thread_time() + _MAX_SECONDS
            return template.render(values)

    def concat(self, parts: Iterable[str]) -> str:
        """What jinja joins every piece of output with."""
        pieces = list(parts)
        if sum(map(len, pieces)) > _MAX_SIZE:
            raise TooMuch(f"it makes a text of more than {_MAX_SIZE:,} characters")
        return "".join(pieces)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, each a step; what every `for` of a template runs over."""
        for item in items:
            self._step()
            yield item

    def bounded(self, value: Any) -> Any:
        """`value`, unless it is a text or list beyond the limit."""
        if isinstance(value, (str, list, tuple)) and len(value) > _MAX_SIZE:
            raise TooMuch(f"it makes a text of {len(value):,} characters")
        return value

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Reaching for Python's insides is an error at once; jinja's own would print nothing."""
        raise SecurityError(f"it reaches for {attribute!r}")

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._step()
        method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and method.__name__ in _GROWING:
            _check_growth(method.__name__, [owner, *args, *kwargs.values()])
        return __self.bounded(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if operator == "**" and (abs(left) > _MAX_NUMBER or abs(right) > _MAX_EXPONENT):
                raise TooMuch("it raises a number to a huge power")
        elif operator != "+":
            _check_growth("format" if operator == "%" else operator, [left, right])
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, int) and abs(made) > _MAX_NUMBER:
            raise TooMuch("it makes a huge number")
        return self.bounded(made)

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps jinja's marks of who wants the context
        def run(*args: Any, **kwargs: Any) -> Any:
            self._step()
            if name in _GROWING:
                _check_growth(name, [*args, *kwargs.values()])
            return self.bounded(function(*args, **kwargs))

        return run

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise TooMuch(f"it takes more than {_MAX_STEPS:,} steps")
        if time.thread_time() > self._deadline:
            raise TooMuch(f"it takes longer than {_MAX_SECONDS:.0f} s")


class _CountingCode(CodeGenerator):
    """Compiles every `for` to run over `counted` items and every text concatenation `bounded`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        counted = nodes.EnvironmentAttribute("counted")
        node.iter = nodes.Call(counted, [node.iter], [], None, None)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.bounded(")
        super().visit_Concat(node, frame)
        self.write(")")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training; here it is just text."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it sets the name {name!r}")
        super().__setitem__(name, value)


def _weight(value: Any) -> int:
    if isinstance(value, str):
        return max(len(value), 1)
    if isinstance(value, (list, tuple)):
        return sum(len(item) if isinstance(item, str) else 1 for item in value) or 1
    return max(abs(value), 1) if isinstance(value, int) else 1


def _check_growth(name: str, operands: list[Any]) -> None:
    """Refuse what could multiply texts, or pad them, into something huge."""
    if math.prod(map(_weight, operands)) > _MAX_GROWTH:
        raise TooMuch("it multiplies a text into something huge")
    if name.startswith("format") and any(
        isinstance(text, str) and _LONG_NUMBER.search(text) for text in operands[:1]
    ):
        raise TooMuch("it pads a text to a huge width")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
