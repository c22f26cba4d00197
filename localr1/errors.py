"""The errors a user sees: one sentence, one way out, one exit code.

Everything that can go wrong with a user's files, machine or words is a `LocalR1Error`; `cli.main`
prints it as `error:` / `hint:` and exits with its code. Any other exception is a bug of ours.
"""

from __future__ import annotations

FAILURE, USAGE, NOT_FOUND, NO_MEMORY, UNSUPPORTED, CONTEXT_FULL, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130


class LocalR1Error(Exception):
    """A failure with a sentence for the user (`str(error)`), a `hint`, and an exit `code`."""

    def __init__(self, message: str, hint: str = "", code: int = FAILURE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class ModelNotFound(LocalR1Error):
    """The model is unknown, or one of its files is missing (exit 3)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, NOT_FOUND)


class BadFile(LocalR1Error):
    """A file is damaged, cut short, or not what its name says (exit 1)."""


class DoesNotFit(LocalR1Error):
    """The machine has not enough memory (exit 4)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, NO_MEMORY)


class Unsupported(LocalR1Error):
    """The architecture, format or processor is not one we implement (exit 5)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, UNSUPPORTED)


class ContextFull(LocalR1Error):
    """The conversation has no room left in the context (exit 6)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, CONTEXT_FULL)
