"""The first compilation: shared with helper processes, complete without them, done once."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from cpu_experts import warmup as start, cache
import importlib
module = importlib.import_module("cpu_experts.warmup")
if sys.argv[1] == "killed":
    begin = module._start_helpers
    def begin_and_kill(missing):
        helpers = begin(missing)
        for helper in helpers:
            helper.process.kill()
        return helpers
    module._start_helpers = begin_and_kill
if sys.argv[1] == "again":
    module._start_helpers = lambda missing: [] if not missing else sys.exit(f"missing {missing}")
counts = list(start(["Q8_0"]))
total = counts[0][1]
assert counts == sorted(counts) and counts[0][0] == 0 and counts[-1] == (total, total), counts
"""


def run(how: str, home: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(home), "LOCALR1_ISA": "portable"}
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr


def test_killed_helpers_cost_time_and_nothing_else(tmp_path: Path):
    run("killed", tmp_path)
    run("again", tmp_path)


def test_helpers_leave_nothing_to_compile(tmp_path: Path):
    run("plain", tmp_path)
    run("again", tmp_path)
