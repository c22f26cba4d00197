"""Fetching a model into the store: all its files at once, each from where it was cut off.

A file comes in as NAME.<id>.part and gets its name when its sha256 is the hub's; so a process may
be ended at any moment, and the next pull asks only for the rest. Not here: the hub's protocol
(localr1.hub), where things lie (localr1.store).
"""

from __future__ import annotations

import errno
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from localr1 import hub, store
from localr1.errors import BadFile, LocalR1Error
from localr1.events import Progress
from localr1.part import Part, sum_of
from localr1.registry import ModelEntry
from localr1.repository import Listing, RemoteFile, chosen, matching
from localr1.store import Manifest, Stored, StoredFile

PARALLEL = 4  # files at a time: one connection seldom fills a line
TRIES = 5  # in a row that brought nothing; for the listing fewer: somebody sits and waits
LISTING_TRIES = 3
BACKOFF_SECONDS = 1.0  # doubles with every try
_LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
_SPARE_BYTES = 64 << 20  # left free on the disk
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Report = Callable[[Progress], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched: a folder of the store, and where each of its files comes from."""

    stored: Stored
    listing: Listing
    files: tuple[RemoteFile, ...]

    @property
    def nbytes_left(self) -> int:
        """Bytes that are still to come."""
        return self.stored.nbytes - self.stored.nbytes_here


def prepare(model: str, quant: str | None, entry: ModelEntry | None) -> Job:
    """Ask the hub what a model's files are called, how large they are, and what their sums are.

    `model` is the name of `entry`, or "hf:OWNER/REPO". Raises `ModelNotFound` for what the hub does
    not have, `LocalR1Error` for what it does not give.
    """
    known = entry.quants[quant] if entry and quant else None
    repo = known.repo if known else model.removeprefix(f"{store.HF}:")
    listing = _patiently(lambda: hub.listing(repo), repo, threading.Event(), LISTING_TRIES)
    if known and quant:
        files = matching(listing, known.pattern)
    else:
        quant, files = chosen(listing, quant)
    licence = entry.licence if entry else listing.licence
    rows = tuple(StoredFile(file.name, file.nbytes, file.sha256 or "") for file in files)
    manifest = Manifest(model, quant, repo, listing.commit, licence, False, rows)
    return Job(Stored(_folder(manifest, files), manifest), listing, files)


def _folder(manifest: Manifest, files: tuple[RemoteFile, ...]) -> Path:
    """Where the files go. Names come from a stranger: none may lead elsewhere."""
    bad = [file.path for file in files if not store.is_safe(file.name)]
    try:
        folder = store.folder_of(manifest.model, manifest.quant)
    except ValueError:
        bad.append(manifest.quant)
    if bad:
        hint = "ask its publisher for plainer names"
        raise LocalR1Error(f"{manifest.repo} calls a file {bad[0]!r:.60}", hint)
    return folder


def fetch(job: Job, report: Report) -> Stored:
    """Fetch what is not here yet; returns the complete model.

    Raises `BadFile` (another sum than the hub's), `LocalR1Error` (no room, no connection, another
    process at work), and lets KeyboardInterrupt through; half files stay for the next time.
    """
    with store.locked(job.stored.manifest.model, job.stored.manifest.quant):
        _drop_outdated(job)
        _check_disk(job)
        store.write(job.stored)
        return store.complete(job.stored, _Transfer(job, report).run())


def _drop_outdated(job: Job) -> None:
    """Remove whole files of an earlier pull whose content the publisher has since replaced."""
    before = store.at(job.stored.folder)
    sums = {file.name: file.sha256 for file in before.manifest.files} if before else {}
    for file in job.files:
        path = job.stored.folder / file.name
        same = path.is_file() and path.stat().st_size == file.nbytes
        if same and not (file.sha256 and sums.get(file.name) == file.sha256):
            same = sum_of(path, file).is_right
        if not same:
            path.unlink(missing_ok=True)


def _check_disk(job: Job) -> None:
    folder = next(path for path in (job.stored.folder, *job.stored.folder.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if job.nbytes_left + _SPARE_BYTES > free:
        needs = f"{job.stored.name} needs {size(job.nbytes_left)} more on the disk"
        hint = "make room, pull a smaller quant, or name a larger disk's folder in LOCALR1_MODELS"
        raise LocalR1Error(f"{needs}, and {size(free)} is free in {folder}", hint)


def size(nbytes: int) -> str:
    """`404.4 GB`, `15.9 MB`: decimal, as the hub counts."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


class _Stopped(Exception):
    """Another thread failed, or the user had enough."""


class _Transfer:
    """Threads that fetch the files of a job; the calling thread tells how far they are."""

    def __init__(self, job: Job, report: Report) -> None:
        self._job, self._report = job, report
        self._files: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[StoredFile | Exception] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._counted = threading.Lock()
        self._to_check = sum(part.stat().st_size for part in self._parts())
        self._checked = 0  # bytes of half files that were summed again
        self._received = 0  # bytes that came in, less those that were thrown away
        for file in job.files:
            self._files.put(file)

    def _parts(self) -> list[Path]:
        parts = [_part_of(self._job, file) for file in self._job.files]
        return [part for part in parts if part.is_file()]

    def run(self) -> tuple[StoredFile, ...]:
        """All files, in the job's order. Raises what a thread raised, as a sentence."""
        count = min(PARALLEL, len(self._job.files))
        # Daemons: an interrupt need not wait until a silent server has timed out.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        left = self._job.nbytes_left
        here: dict[str, StoredFile] = {}
        for thread in threads:
            thread.start()
        try:
            while len(here) < len(self._job.files):
                try:
                    outcome = self._outcomes.get(timeout=0.1)
                except queue.Empty:
                    outcome = None
                if isinstance(outcome, Exception):
                    raise _explained(outcome, self._job) from outcome
                if outcome is not None:
                    here[outcome.name] = outcome
                self._report(self._progress(left))
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(timeout=1)
        return tuple(here[file.name] for file in self._job.files)

    def _progress(self, left: int) -> Progress:
        """What is done of what was to do when this process began: so the time left is right."""
        if self._checked < self._to_check and not self._received:
            return Progress("Checking what is here", self._checked, self._to_check, "bytes")
        return Progress("Downloading", min(max(self._received, 0), left), left, "bytes")

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._outcomes.put(self._fetch(self._files.get_nowait()))
            except (queue.Empty, _Stopped):
                return
            except Exception as error:  # the calling thread raises it
                self._outcomes.put(error)
                return

    def _fetch(self, file: RemoteFile) -> StoredFile:
        path = self._job.stored.folder / file.name
        if path.is_file():
            return StoredFile(file.name, file.nbytes, file.sha256 or sum_of(path, file).sha256)
        with Part(_part_of(self._job, file), file, self._count_checked) as part:
            _patiently(
                lambda: self._receive(file, part),
                self._job.listing.repo,
                self._stop,
                TRIES,
                lambda: part.nbytes,
            )
            return StoredFile(file.name, file.nbytes, part.become(path).sha256)

    def _receive(self, file: RemoteFile, part: Part) -> None:
        """Add to a half file what it lacks. Raises ConnectionError where the server ends early."""
        if part.nbytes == file.nbytes:
            return
        with hub.stream(self._job.listing, file, part.nbytes) as (begins, pieces):
            if begins != part.nbytes:
                self._count_received(-part.nbytes)
                part.restart()
            for piece in pieces:
                if self._stop.is_set():
                    raise _Stopped
                part.write(piece)
                self._count_received(len(piece))
        if part.nbytes < file.nbytes:
            raise ConnectionError(f"the server sent {part.nbytes} of {file.nbytes} bytes")

    def _count_checked(self, nbytes: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._counted:
            self._checked += nbytes

    def _count_received(self, nbytes: int) -> None:
        with self._counted:
            self._received += nbytes


def _part_of(job: Job, file: RemoteFile) -> Path:
    """The half file; its name holds the content's id, so that it is never mixed with another's."""
    return job.stored.folder / f"{file.name}.{(file.sha256 or file.blob_id or '')[:16]}{store.PART}"


def _patiently(
    ask: Callable[[], Answer],
    repo: str,
    stop: threading.Event,
    tries: int,
    nbytes: Callable[[], int] = lambda: 0,
) -> Answer:
    """`ask()`, again after a while if what went wrong may pass; tries that brought bytes are free.

    Raises a sentence about `repo` when it does not pass.
    """
    failed = 0
    while True:
        before = nbytes()
        try:
            return ask()
        except (hub.HTTP_ERROR, ConnectionError) as error:
            failed = 1 if nbytes() > before else failed + 1
            if not hub.may_pass(error) or failed == tries:
                raise hub.explained(error, repo) from error
            asked_for = hub.retry_after(error)
            wait = BACKOFF_SECONDS * 2 ** (failed - 1) if asked_for is None else asked_for
        if stop.wait(min(wait, _LONGEST_WAIT)):
            raise _Stopped


def _explained(error: Exception, job: Job) -> Exception:
    """What a thread raised, with the way on: what came in is kept."""
    here = f"{size(job.stored.nbytes_here)} of {size(job.stored.nbytes)} are here"
    on = f"`localr1 pull {job.stored.name}` goes on from there"
    if isinstance(error, BadFile):
        return error
    if isinstance(error, LocalR1Error):
        return type(error)(str(error), f"{error.hint}; {here}, and {on}")
    if isinstance(error, OSError) and error.errno in _FULL:
        return LocalR1Error(f"the disk is full: {here}", f"make room, and {on}")
    if isinstance(error, OSError):
        where = job.stored.folder
        return LocalR1Error(
            f"cannot write to {where}: {error.strerror or error}", f"{here}, and {on}"
        )
    return error
