"""The Hugging Face hub: what a repository holds, and the bytes of one file.

huggingface_hub gives the listing, the token, the mirror (HF_ENDPOINT) and the HTTP session with its
proxies and certificates. The bytes are asked for here with Range requests: its own download (2.4)
starts a file anew after the process was ended, and a part of R1 has 50 GB. Plain HTTP, too: Xet,
the hub's other way, keeps a second copy in a cache, is not spoken by mirrors, and does not go on
where a process was ended either; the hub serves all Xet files by HTTP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from localr1.errors import LocalR1Error, ModelNotFound
from localr1.repository import Listing, RemoteFile

# httpx or httpx2, as the version of huggingface_hub has it: the base of all that may go wrong with
# a connection. Both libraries' timeouts, resets and refusals are below it.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
constants.HF_HUB_DISABLE_TELEMETRY = True  # a download tells nobody what else runs here
PASSING = frozenset({408, 429, 500, 502, 503, 504})  # statuses that may be gone in a moment
_LIST_SECONDS = 30.0


def endpoint() -> str:
    """The hub's address, or a mirror's."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def listing(repo: str) -> Listing:
    """The files of a repository's main branch.

    Raises `ModelNotFound` for an unknown or private one; what a connection raises passes through.
    """
    api = HfApi(endpoint=endpoint(), library_name="localr1")
    info = api.model_info(repo, files_metadata=True, timeout=_LIST_SECONDS)
    card = info.card_data
    licence = (card.get("license_name") or card.get("license") or "") if card else ""
    files = tuple(
        RemoteFile(
            path=file.rfilename,
            nbytes=file.lfs.size if file.lfs else file.size or 0,
            sha256=file.lfs.sha256 if file.lfs else None,
            blob_id=file.blob_id,
        )
        for file in info.siblings or ()
    )
    return Listing(repo, info.sha or "main", str(licence), files)


@contextmanager
def stream(found: Listing, file: RemoteFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The bytes of a file from `start` on; gives where they really start, and them in pieces.

    A server that ignores Range starts at 0. What a connection raises passes through.
    """
    url = hf_hub_url(found.repo, file.path, revision=found.commit, endpoint=endpoint())
    headers = build_hf_headers(library_name="localr1")
    headers["Accept-Encoding"] = "identity"  # Range counts bytes of the file, not of its gzip
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # The session drops the token where the hub sends on to another host.
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        told = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        begins = int(told[1]) if told and response.status_code == 206 else 0
        yield begins, response.iter_bytes()


def retry_after(error: Exception) -> float | None:
    """Seconds that the server asked to wait for, if it said so in an error that may pass."""
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return None
    said = error.response.headers.get("Retry-After", "")
    return float(said) if said.isdigit() else None


def may_pass(error: Exception) -> bool:
    """Whether to ask again: a broken connection, or a server that has no time just now."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in PASSING
    return isinstance(error, (HTTP_ERROR, ConnectionError))


def explained(error: Exception, repo: str) -> LocalR1Error:
    """A connection's error as a sentence."""
    token = "give a token as HF_TOKEN, or log in with `hf auth login`"
    if isinstance(error, OfflineModeIsEnabled):
        return LocalR1Error("HF_HUB_OFFLINE forbids to ask the hub", "unset it to download")
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, whose kind it is
        hint = f"accept them at {endpoint()}/{repo}, then {token}"
        return LocalR1Error(f"the makers of {repo} ask you to accept their terms first", hint)
    if isinstance(error, RepositoryNotFoundError):
        hint = f"check the name; if it is private, {token}"
        return ModelNotFound(f"{endpoint()} has no repository {repo}", hint)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, EntryNotFoundError) or status == 404:
        hint = "its publisher changed it just now: pull again"
        return ModelNotFound(f"{endpoint()} no longer has a file of {repo}", hint)
    if status in (401, 403):
        return LocalR1Error(f"{endpoint()} refuses {repo} (HTTP {status})", token)
    if status == 429:
        hint = f"wait some minutes, or {token}: who is known may ask more often"
        return LocalR1Error(f"{endpoint()} says that this machine asks too often (HTTP 429)", hint)
    if status is not None:
        return LocalR1Error(f"{endpoint()} answers with HTTP {status}", "try again later")
    what = " ".join(f"{type(error).__name__}: {error}".split())
    hint = "check the network; HF_ENDPOINT names a mirror"
    return LocalR1Error(f"no connection to {endpoint()} ({what})", hint)
