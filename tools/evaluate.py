"""How many held-out problems tiny-r1 solves, by family: exact matches with greedy decoding.

    python -m tools.evaluate [MODEL] [--problems tests/data/eval.jsonl] [--floor 0.95]

Each line of the problems is {"family", "prompt", "answer", ...}; a problem counts as solved when
the last text in bold of the answer (what stands behind the thinking) is exactly `answer`. The last
line printed is JSON. Exit code 1 if the share lies below the floor.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import localr1

PROBLEMS = Path(__file__).parent.parent / "tests" / "data" / "eval.jsonl"
BOLD = re.compile(r"\*\*(.+?)\*\*")


def bold(text: str) -> str | None:
    """The last text in bold, None if there is none."""
    found = BOLD.findall(text)
    return found[-1] if found else None


def solve(
    llm: localr1.LLM, problems: list[dict[str, str]]
) -> Iterator[tuple[dict[str, str], str, int]]:
    """Ask each problem in a conversation of its own: the problem, the answer's text, its tokens."""
    greedy = replace(llm.sampling, temperature=0.0)
    for problem in problems:
        text, tokens = "", 0
        for event in llm.chat(params=greedy).reply(problem["prompt"]):
            if isinstance(event, localr1.Content):
                text += event.text
            elif isinstance(event, localr1.Done):
                tokens = event.stats.completion_tokens
        yield problem, text, tokens


def main() -> int:
    """Run all problems and print a line per family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="tiny-r1")
    parser.add_argument("--problems", type=Path, default=PROBLEMS)
    parser.add_argument("--floor", type=float, default=0.95)
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers")
    options = parser.parse_args()
    problems = [json.loads(line) for line in options.problems.read_text("utf-8").splitlines()]
    llm = localr1.load(options.model)
    solved: dict[str, list[bool]] = defaultdict(list)
    began, written = time.perf_counter(), 0
    for problem, text, tokens in solve(llm, problems):
        right = bold(text) == problem["answer"]
        solved[problem["family"]].append(right)
        written += tokens
        if options.wrong and not right:
            print(f"{problem['prompt']!r}: {text.strip()!r}, not {problem['answer']!r}")
    seconds = time.perf_counter() - began
    every = [right for results in solved.values() for right in results]
    for family, results in [*sorted(solved.items()), ("all", every)]:
        right, asked = sum(results), len(results)
        print(f"{family:<12} {right:>4} of {asked:<4} {right / asked:6.1%}")
    print(f"{written} tokens in {seconds:.0f} s")
    share = sum(every) / len(every)
    families = {family: sum(results) / len(results) for family, results in sorted(solved.items())}
    print(json.dumps({"model": llm.name, "share": share, "families": families, "tokens": written}))
    return 0 if share >= options.floor else 1


if __name__ == "__main__":
    sys.exit(main())
