"""Keeps a running conversation on disk: the transcript after each turn, the cache while idle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from localr1.chat import archive, snapshot
from localr1.chat.session import Session

if TYPE_CHECKING:
    from localr1.chat.snapshot import CachingModel


class Saver:
    """`model` is what the user asked for, so that resuming can ask for it again."""

    def __init__(self, session: Session, model: str, saved: archive.Saved | None = None) -> None:
        self._session = session
        self._saved = saved or archive.Saved(archive.new_name(), model)
        self._saved.model = model
        self._saved.transcript = session.transcript
        self._mark: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """What the conversation is called."""
        return self._saved.name

    @property
    def model(self) -> str:
        """What the user calls the model that answers."""
        return self._saved.model

    @property
    def kept(self) -> bool:
        """Whether there is anything on disk."""
        return self._saved.updated > 0

    def save(self) -> None:
        """Write the transcript, if there is one. Raises OSError."""
        if self._session.transcript.messages or self.kept:
            archive.save(self._saved)

    def rename(self, name: str) -> None:
        """Keep the conversation under another name. Raises LocalR1Error: it is taken."""
        if name != self.name:
            archive.rename(self.name, name)
            self._saved.name = name

    def with_model(self, model: str) -> Saver:
        """The same conversation, now answered by another model, which the session has already."""
        return Saver(self._session, model, self._saved)

    def work(self) -> Iterator[None]:
        """What makes the next turn, or resuming, start at once: settle, then save the cache."""
        yield from self._session.settle()
        yield from self.save_cache()

    def save_cache(self) -> Iterator[None]:
        """Write the part of the cache that the next prompt begins with. Raises OSError."""
        engine = self._llm.engine
        ids = self._session.settled_ids()
        ids = ids[: engine.known(ids)]
        if self.kept and ids:
            rows = archive.cache_file(self.name)
            yield from snapshot.save(rows, engine, ids, self._fingerprint())
            archive.drop_old_caches()

    def restore_cache(self) -> str:
        """Fill the engine's cache with this conversation's; returns why not, or ""."""
        rows = archive.cache_file(self.name)
        if not rows.exists():
            return "there is no saved cache"
        return snapshot.restore(rows, self._llm.engine, self._fingerprint())

    @property
    def _llm(self) -> CachingModel:
        return cast("CachingModel", self._session.llm)

    def _fingerprint(self) -> dict[str, str]:
        if self._mark is None:
            self._mark = snapshot.fingerprint(self._llm)
        return self._mark
