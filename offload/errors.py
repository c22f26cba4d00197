"""What can go wrong while weights come into memory, each with a sentence for the user.

ValueErrors of our own: whoever uses this package turns them into its own errors.
"""

from __future__ import annotations


class ResidencyError(ValueError):
    """Weights could not be brought into memory; `hint` says what may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FileChanged(ResidencyError):
    """A file shrank, or was replaced, while it was open."""


class Unreadable(ResidencyError):
    """The disk or the file system failed to deliver a file's bytes."""


class NoRoom(ResidencyError):
    """The system refused the memory."""


class Unknown(ResidencyError):
    """A residency of that name does not exist, or not on this system."""
