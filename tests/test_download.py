"""Fetching, against a server on this machine that speaks the hub's protocol and misbehaves."""

from __future__ import annotations

import hashlib
import random
import resource
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from localr1 import download, registry, store
from localr1.errors import BadFile, LocalR1Error, ModelNotFound
from localr1.events import Progress
from localr1.store import Stored
from tests.hub import Hub, serving

MIB = 1 << 20
REPO = "someone/Model-GGUF"
MODEL = f"hf:{REPO}"
SHARDS = [f"Model-Q4_K_M/Model-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
CONFIG = b'{"architectures": ["DeepseekV3ForCausalLM"]}'


def content(seed: int, size: int = MIB) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    hub.add(
        REPO,
        {
            "README.md": b"a card",
            **{path: content(seed) for seed, path in enumerate(SHARDS)},
            "Model-Q8_0.gguf": content(9, 2 * MIB),
            "mmproj-Model-F16.gguf": content(8, 2000),
        },
    )
    hub.add("someone/Folder", folder())
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
        yield hub


def folder() -> dict[str, bytes]:
    return {
        "config.json": CONFIG,
        "tokenizer.json": content(20, 700),  # in git, not in LFS
        "model-00001-of-00001.safetensors": content(21),
        "LICENSE": b"do as you like",
        "modeling.py": b"print('never fetched')",
        "figures/plot.json": b"{}",
    }


def pull(name: str = MODEL, quant: str | None = None) -> Stored:
    return download.fetch(download.prepare(name, quant, None), lambda event: None)


def held(stored: Stored) -> dict[str, bytes]:
    """Every file of a folder, the manifest left out."""
    return {p.name: p.read_bytes() for p in stored.folder.iterdir() if p.name != store.MANIFEST}


def expected(hub: Hub, paths: list[str]) -> dict[str, bytes]:
    return {path.rpartition("/")[2]: hub.repos[REPO][path] for path in paths}


def test_all_parts_come_and_nothing_else(hub: Hub) -> None:
    events: list[Progress] = []
    job = download.prepare(MODEL, None, None)
    assert (job.stored.name, job.nbytes_left) == (f"{MODEL}:Q4_K_M", 3 * MIB)
    stored = download.fetch(job, events.append)
    assert held(stored) == expected(hub, SHARDS)
    assert stored.path.name == "Model-Q4_K_M-00001-of-00003.gguf" and not stored.missing
    assert store.at(stored.folder) == stored
    manifest = stored.manifest
    assert (manifest.complete, manifest.repo, manifest.licence) == (True, REPO, "mit")
    assert manifest.commit == hub.commit
    sums = [hashlib.sha256(content(seed)).hexdigest() for seed in range(3)]
    assert [file.sha256 for file in manifest.files] == sums
    assert events and all(0 <= e.done <= e.total == 3 * MIB for e in events)
    assert registry.resolve(MODEL).path == stored.path


def test_a_second_pull_asks_for_no_bytes(hub: Hub) -> None:
    first = pull()
    hub.requests.clear()
    assert pull() == first
    assert not [r for r in hub.requests if r.path.startswith("/cdn/")]


@pytest.mark.parametrize(
    ("wanted", "quant", "names"),
    [
        (None, "Q4_K_M", SHARDS),
        ("q8_0", "Q8_0", ["Model-Q8_0.gguf"]),
        ("Model-Q8_0.gguf", "Q8_0", ["Model-Q8_0.gguf"]),
        (SHARDS[1], "Q4_K_M", SHARDS),
    ],
)
def test_what_is_named_is_fetched(
    hub: Hub, wanted: str | None, quant: str, names: list[str]
) -> None:
    stored = pull(quant=wanted)
    assert stored.manifest.quant == quant
    assert held(stored) == expected(hub, names)
    assert registry.resolve(f"{MODEL}:{wanted}" if wanted else MODEL).stored == stored


def test_a_folder_comes_without_code_and_pictures(hub: Hub) -> None:
    stored = pull("hf:someone/Folder")
    wanted = {"config.json", "tokenizer.json", "model-00001-of-00001.safetensors", "LICENSE"}
    assert held(stored) == {n: d for n, d in folder().items() if n in wanted}
    assert stored.path == stored.folder
    for file in stored.manifest.files:  # those that the hub states no sha256 of, too
        assert file.sha256 == hashlib.sha256(folder()[file.name]).hexdigest()


def test_a_quant_of_models_toml_is_found_by_its_pattern(hub: Hub) -> None:
    entry = registry.ModelEntry(
        name="a-model",
        title="",
        licence="MIT",
        context=1,
        source="hf:x/y",
        quants={"Q4_K_M": registry.Quant(REPO, "Model-Q4_K_M/*.gguf")},
    )
    job = download.prepare("a-model", "Q4_K_M", entry)
    assert job.stored.folder == store.folder_of("a-model", "Q4_K_M")
    assert held(download.fetch(job, lambda event: None)) == expected(hub, SHARDS)


def test_a_cut_connection_goes_on_by_itself(hub: Hub) -> None:
    hub.cut_after = 300_000
    stored = pull(quant="Q8_0")
    asked = [r.range for r in hub.asked("Q8_0.gguf")]
    assert asked == [None, *(f"bytes={300_000 * i}-" for i in range(1, 7))]
    assert held(stored) == expected(hub, ["Model-Q8_0.gguf"])


def test_the_next_pull_asks_only_for_the_rest(hub: Hub) -> None:
    interrupted(hub, after=500_000)
    stored = registry.here(MODEL, None)[0]
    already = stored.nbytes_here
    assert not stored.manifest.complete and 0 < already < stored.nbytes
    with pytest.raises(ModelNotFound, match="not complete") as caught:
        registry.resolve(MODEL)
    assert f"`localr1 pull {MODEL}:Q8_0` goes on" in caught.value.hint
    events: list[Progress] = []
    done = download.fetch(download.prepare(MODEL, "Q8_0", None), events.append)
    assert [r.range for r in hub.asked("Q8_0.gguf")] == [f"bytes={already}-"]
    assert held(done) == expected(hub, ["Model-Q8_0.gguf"])
    assert events[-1].total == 2 * MIB - already


def interrupted(hub: Hub, after: int) -> None:
    """A pull of Q8_0 that the user stops once `after` bytes are here."""

    def stop(event: Progress) -> None:
        if event.done >= after:
            raise KeyboardInterrupt

    hub.seconds = 0.01
    with pytest.raises(KeyboardInterrupt):
        download.fetch(download.prepare(MODEL, "Q8_0", None), stop)
    hub.seconds = 0
    hub.requests.clear()


def test_a_server_that_ignores_range_starts_anew(hub: Hub) -> None:
    hub.ranges, hub.cut_after, hub.cuts = False, 700_000, 2
    stored = pull(quant="Q8_0")
    assert held(stored) == expected(hub, ["Model-Q8_0.gguf"])
    assert len(hub.asked("Q8_0.gguf")) == 3


def test_a_half_file_of_other_content_is_not_mixed_in(hub: Hub) -> None:
    interrupted(hub, after=500_000)
    hub.commit = "1" * 40
    hub.repos[REPO]["Model-Q8_0.gguf"] = content(77, 2 * MIB)
    assert held(pull(quant="Q8_0")) == expected(hub, ["Model-Q8_0.gguf"])
    assert [r.range for r in hub.asked("Q8_0.gguf")] == [None]


def test_a_whole_file_is_fetched_again_when_its_publisher_changed_it(hub: Hub) -> None:
    pull()
    hub.commit = "1" * 40
    hub.repos[REPO][SHARDS[1]] = content(78)
    hub.requests.clear()
    assert held(pull()) == expected(hub, SHARDS)
    assert len([r for r in hub.requests if r.path.startswith("/cdn/")]) == 1


def test_wrong_bytes_are_removed_and_told(hub: Hub) -> None:
    hub.lie["Model-Q8_0.gguf"] = content(9, 2 * MIB - 1) + b"\0"
    with pytest.raises(BadFile, match="another checksum than the hub states"):
        pull(quant="Q8_0")
    stored = registry.here(MODEL, None)[0]
    assert held(stored) == {} and not stored.manifest.complete
    hub.lie.clear()
    assert held(pull(quant="Q8_0")) == expected(hub, ["Model-Q8_0.gguf"])


def test_small_files_are_checked_too(hub: Hub) -> None:
    hub.lie["tokenizer.json"] = content(1, 700)
    with pytest.raises(BadFile, match=r"tokenizer\.json arrived with another checksum"):
        pull("hf:someone/Folder")


def test_more_bytes_than_announced_end_it(hub: Hub) -> None:
    hub.lie["Model-Q8_0.gguf"] = content(9, 3 * MIB)
    with pytest.raises(BadFile, match="than it announced"):
        pull(quant="Q8_0")


@pytest.mark.parametrize(
    ("name", "quant", "kind", "said", "hint"),
    [
        ("hf:nobody/nothing", None, ModelNotFound, "no repository nobody/nothing", "HF_TOKEN"),
        (MODEL, "IQ1_S", ModelNotFound, "holds nothing called 'IQ1_S'", "Q4_K_M, Q8_0"),
        (MODEL, "no.gguf", ModelNotFound, "holds nothing called 'no.gguf'", "Q8_0"),
        ("hf:someone/Empty", None, ModelNotFound, "holds no model", ".safetensors"),
        ("hf:someone/Many", None, LocalR1Error, "holds several models", "Q2_K, Q6_K"),
        ("hf:someone/Twins", None, LocalR1Error, "several models called Q4_K_M", "a-Q4_K_M.gguf"),
        ("hf:someone/Torn", None, BadFile, "holds 1 of 2 parts", "uploading"),
        ("hf:someone/Trick", None, LocalR1Error, "calls a file", "plainer"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: Hub, name: str, quant: str | None, kind: type[LocalR1Error], said: str, hint: str
) -> None:
    hub.add("someone/Empty", {"README.md": b""})
    hub.add("someone/Many", {"m-Q2_K.gguf": b"1", "m-Q6_K.gguf": b"2"})
    hub.add("someone/Twins", {"a-Q4_K_M.gguf": b"1", "b-Q4_K_M.gguf": b"2"})
    hub.add("someone/Torn", {"m-Q4_K_M-00001-of-00002.gguf": b"1"})
    hub.add("someone/Trick", {"-rf .gguf": b"1"})
    with pytest.raises(kind) as caught:
        pull(name, quant)
    assert said in str(caught.value) and hint in caught.value.hint
    assert not store.all_stored()


def test_twins_can_be_named(hub: Hub) -> None:
    hub.add("someone/Twins", {"a-Q4_K_M.gguf": b"1", "b-Q4_K_M.gguf": b"2"})
    stored = pull("hf:someone/Twins", "b-Q4_K_M.gguf")
    assert (stored.manifest.quant, held(stored)) == ("b-Q4_K_M", {"b-Q4_K_M.gguf": b"2"})
    assert registry.resolve("hf:someone/Twins:b-Q4_K_M.gguf").stored == stored
    assert pull("hf:someone/Twins", "b-Q4_K_M") == stored


def test_a_file_that_went_away(hub: Hub) -> None:
    hub.hide.add("Model-Q8_0.gguf")
    with pytest.raises(ModelNotFound, match="no longer has a file of"):
        pull(quant="Q8_0")


def test_gated_repositories_say_where_to_agree(hub: Hub) -> None:
    hub.gated.add(REPO)
    with pytest.raises(LocalR1Error, match="accept their terms first") as caught:
        pull()
    assert f"{hub.address}/{REPO}" in caught.value.hint and "HF_TOKEN" in caught.value.hint


def test_a_token_opens_and_stays_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ModelNotFound, match="no repository"):
        pull()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.requests.clear()
    assert not pull().missing
    for request in hub.requests:
        elsewhere = request.path.startswith("/cdn/")
        assert request.token == (None if elsewhere else "Bearer hf_secret")


def test_a_mirror_is_asked_and_nobody_else(hub: Hub) -> None:
    assert not pull().missing  # HF_ENDPOINT is the only reason that anything was found
    assert {r.host for r in hub.requests if not r.path.startswith("/cdn/")} == {
        hub.address.removeprefix("http://")
    }


def test_too_many_requests_pass(hub: Hub) -> None:
    hub.listing_statuses = [(429, {}), (429, {"Retry-After": "0"})]
    hub.statuses = [(429, {}), (503, {}), (429, {"Retry-After": "0"}), (500, {})]
    assert held(pull(quant="Q8_0")) == expected(hub, ["Model-Q8_0.gguf"])


def test_too_many_requests_that_do_not_pass(hub: Hub) -> None:
    hub.listing_statuses = [(429, {})] * 9
    with pytest.raises(LocalR1Error, match="asks too often") as caught:
        pull()
    assert "HF_TOKEN" in caught.value.hint
    hub.listing_statuses, hub.statuses = [], [(429, {})] * 99
    with pytest.raises(LocalR1Error, match="asks too often") as caught:
        pull(quant="Q8_0")
    assert len(hub.statuses) == 99 - download.TRIES
    assert f"`localr1 pull {MODEL}:Q8_0` goes on from there" in caught.value.hint


def test_no_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LocalR1Error, match=r"no connection to http://127\.0\.0\.1:9") as caught:
        pull()
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_small_disk_is_seen_before_the_first_byte(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(total=10 * MIB, used=9 * MIB, free=MIB)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(LocalR1Error, match=r"needs 2\.1 MB more .* 1\.0 MB is free") as caught:
        pull(quant="Q8_0")
    assert "LOCALR1_MODELS" in caught.value.hint
    assert not hub.asked("Q8_0.gguf") and not store.all_stored()


def test_a_disk_that_fills_up_keeps_what_came(hub: Hub) -> None:
    """The kernel refuses bytes beyond a file size limit as it does those beyond a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 1000, hard))
    try:
        with pytest.raises(LocalR1Error, match=r"the disk is full: 1\.0 MB of 2\.1 MB") as caught:
            pull(quant="Q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"make room, and `localr1 pull {MODEL}:Q8_0` goes on" in caught.value.hint
    hub.requests.clear()
    assert held(pull(quant="Q8_0")) == expected(hub, ["Model-Q8_0.gguf"])
    assert [r.range for r in hub.asked("Q8_0.gguf")] == [f"bytes={MIB + 1000}-"]
