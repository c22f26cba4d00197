"""What the system says of its caches; tiers and cores are tested where they are used."""

from __future__ import annotations

from pathlib import Path

from cpu_experts import cpu


def test_last_caches_are_counted_once(tmp_path: Path) -> None:
    for number, (size, shared) in enumerate([("32768K", "0-1"), ("32768K", "0-1"), ("96M", "2")]):
        cache = tmp_path / f"cpu{number}" / "cache" / "index3"
        cache.mkdir(parents=True)
        (cache / "size").write_text(f"{size}\n")
        (cache / "shared_cpu_list").write_text(f"{shared}\n")
    assert cpu.last_cache_bytes(tmp_path) == 128 << 20
    assert cpu.last_cache_bytes(tmp_path / "nothing") == 32 << 20
    (tmp_path / "cpu2" / "cache" / "index3" / "size").write_text("x")
    assert cpu.last_cache_bytes(tmp_path) == 32 << 20
