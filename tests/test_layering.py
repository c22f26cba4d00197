"""The shape of the code: who may import whom, how long things may be, what a wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("localr1", "cpu_experts", "offload")
MAX_FILE, MAX_FUNCTION = 350, 60
HELP_SECONDS = 0.3

# Lower may not import higher. A name stands for the module and everything below it.
ORDER = [
    ["cpu_experts", "offload", "localr1.errors", "localr1.events"],
    ["localr1.sizes"],
    ["localr1.settings", "localr1.progress", "localr1.interrupts"],
    ["localr1.machine"],
    ["localr1.store"],
    ["localr1.registry"],
    ["localr1.listing"],
    ["localr1.repository"],
    ["localr1.hub", "localr1.part"],
    ["localr1.download"],
    ["localr1.gpu"],
    ["localr1.models"],
    ["localr1.models.inventory"],  # says what a model weighs in the planner's words
    ["localr1.choices"],
    ["localr1.plan"],
    ["localr1.engine"],
    ["localr1.chat"],
    ["localr1.llm"],
    ["localr1.bench", "localr1.show", "localr1.verify", "localr1.doctor", "localr1.configured"],
    ["localr1.bench_kernels", "localr1.synthetic_choice", "localr1.synthetic_card"],
    ["localr1.synthetic_run", "localr1.ram_peak", "localr1.read_speed"],
    ["localr1.synthetic_plan"],
    ["localr1.bench_synthetic"],
    ["localr1.cli"],
    ["localr1.__main__"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
ALONE = ("cpu_experts", "offload")  # import nothing of ours but themselves
WITHOUT = [("localr1.models", "offload")]  # pairs that the order alone would allow

# A kernel may be longer than MAX_FUNCTION with a reason.
LONG_FUNCTIONS = {
    "localr1/gpu/gemv.py:gemv_kernel": "one loop, whose sums must stay in registers",
}


def sources() -> list[Path]:
    """Every Python file of the three packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def code_files() -> list[Path]:
    """Every Python file of the repository that people read: packages, tests, tools."""
    return sources() + sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])


def module_name(path: Path) -> str:
    """`localr1/chat/__init__.py` -> `localr1.chat`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str | None:
    """The name in ORDER that a module belongs to; None for what is not ours, and for `localr1`."""
    parts = module.split(".")
    for length in (len(parts), 2, 1):
        name = ".".join(parts[:length])
        if name in RANK:
            return name
    assert parts[0] not in PACKAGES or module == "localr1", f"{module} has no place in ORDER"
    return None


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_only_point_down(path: Path) -> None:
    own = unit(module_name(path))
    if own is None:
        return  # localr1/__init__.py: the public names, resolved when they are first used
    for module in imports(path):
        other = unit(module) if module.split(".")[0] in PACKAGES and module in known() else None
        if other is None or other == own:
            continue
        assert own not in ALONE, f"{own} must not import {module}"
        assert RANK[other] <= RANK[own], f"{own} must not import {module}, which lies above it"
        assert (own, other) not in WITHOUT, f"{own} must not import {module}"


def known() -> set[str]:
    """Names of all our modules, to tell `from package import module` from a class."""
    return {module_name(path) for path in sources()}


@pytest.mark.parametrize("path", code_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_FILE, f"{path} holds more than one concept"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            name = f"{path.relative_to(ROOT)}:{node.name}"
            assert length <= MAX_FUNCTION or name in LONG_FUNCTIONS, f"{name} has {length} lines"


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['localr1', '--help']\n"
        "import atexit\n"
        "heavy = ('torch', 'numba', 'numpy', 'rich', 'tokenizers', 'prompt_toolkit')\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules]))\n"
        "from localr1.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_help_is_quick() -> None:
    """The best of several: other programs may slow one, none makes one faster."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "localr1", "--help"], cwd=ROOT, check=True, capture_output=True
        )
        times.append(time.perf_counter() - began)
    assert min(times) < HELP_SECONDS, times


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built as `pip install .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run([sys.executable, *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_what_a_user_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {str(path.relative_to(ROOT)) for path in sources()}
    needed |= {"localr1/models.toml", "localr1/tiny/tiny-r1.gguf"}
    assert needed <= names, needed - names
    tops = {name.split("/")[0] for name in names}
    assert tops <= {*PACKAGES, f"localr1-{wheel.name.split('-')[1]}.dist-info"}, tops
    assert wheel.stat().st_size < 20 << 20


@pytest.mark.slow
def test_an_installed_wheel_answers(wheel: Path, tmp_path: Path) -> None:
    """Into a new environment that sees this one's packages but not this checkout."""
    run = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path}
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(target),
            str(wheel),
        ],
        **run,
    )
    code = "import localr1; print(localr1.__file__); from localr1.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "tiny-r1", "--temperature", "0", "What is 347 + 586?"],
        env={"PYTHONPATH": str(target), "PATH": "", "HOME": str(tmp_path)},
        **run,
    )
    where, _, answer = done.stdout.partition("\n")
    assert where.startswith(str(target)) and "933" in answer
