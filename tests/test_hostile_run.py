"""400 damaged GGUFs from end to end: the error form, or a run with finite logits; never a crash.

The runs happen in a child process, so that a crash of the interpreter is a failed test and not the
end of the tests.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import localr1
from localr1.errors import LocalR1Error
from tests import toy
from tests.models.test_hostile_gguf import N_MUTANTS, mutants

PROMPT = [0, 764, 5, 9, 765, 766]


def run_all(folder: Path) -> dict[str, int]:
    """Load, read and write with each mutant of tiny-r1; counts of what happened."""
    counts = {"refused": 0, "ran": 0}
    path = folder / "mutant.gguf"
    params = localr1.SamplingParams(max_tokens=4, seed=1)
    for what, content in mutants(toy.TINY_R1):
        path.write_bytes(content)
        try:
            llm = localr1.load(path, context=64)
            assert np.isfinite(llm.logits(PROMPT)).all(), what
            llm.tokenizer.decode(list(llm.generate(PROMPT, params)))
            counts["ran"] += 1
        except LocalR1Error as error:
            assert str(error) and "\n" not in str(error), what
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(what) from error
    return counts


def test_damaged_models_run_or_are_refused(tmp_path: Path):
    child = subprocess.run(
        [sys.executable, "-m", "tests.test_hostile_run", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    counts = json.loads(child.stdout)
    assert counts["refused"] + counts["ran"] == N_MUTANTS
    assert counts["ran"] > 20  # flipped names and dates do no harm


if __name__ == "__main__":
    print(json.dumps(run_all(Path(sys.argv[1]))))
