"""The command line as a shell sees it: stdout, stderr and exit codes, for good input and bad."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

import localr1
from localr1 import cli, registry

ROOT = Path(__file__).parent.parent
SUM = "What is 347 + 586?"
GREEDY = ("--temperature", "0")
THINK_FLAGS = ["--think", "--think-budget", "--think-more", "--threads"]


class Result(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process (torch is imported once), with `stdin` piped in."""

    def run(*args: str | Path, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["localr1", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return run


def assert_error(result: Result, code: int, words: str) -> None:
    """The error form: one lower-case sentence with `words`, perhaps a hint, nothing on stdout."""
    lines = result.err.splitlines()
    assert result.code == code, result
    assert result.out == ""
    assert lines[0].startswith("error: ") and words in lines[0], lines
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint:  ")), lines
    assert "internal:" not in lines[0] and "Traceback" not in result.err


@pytest.fixture(scope="module")
def tiny() -> bytes:
    """The bytes of the shipped model, to damage."""
    return registry.resolve("tiny-r1").path.read_bytes()


def test_alone_it_prints_help(run_cli: Cli) -> None:
    result = run_cli()
    assert result.code == 0
    assert "chat" in result.out and "verify" in result.out
    assert run_cli("--help") == run_cli("-h") == result


@pytest.mark.parametrize(
    ("words", "offered"), [("localr1 pl", ["plan"]), ("localr1 run --th", THINK_FLAGS)]
)
def test_shells_complete_commands_and_options(words: str, offered: list[str]) -> None:
    """What the script of `localr1 --show-completion` asks for when Tab is pressed."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; sys.argv = ['localr1']; from localr1.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked | {"_LOCALR1_COMPLETE": "complete_bash"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, offered, "")


@pytest.mark.parametrize("module", ["typer", "localr1.registry", "localr1.llm", "torch", "atexit"])
def test_ctrl_c_while_modules_are_imported_is_quiet(module: str) -> None:
    """The signal comes as `module` is looked for; "atexit": while Python tidies up at the end."""
    code = (
        "import atexit, os, signal, sys\n"
        "def interrupt(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: interrupt()\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"if {module!r} == 'atexit': atexit.register(interrupt)\n"
        "from localr1.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "run", "tiny-r1", "--max-tokens", "1", "hi"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.stderr == b""
    assert done.returncode in (130, -signal.SIGINT)  # a shell reports 130 for both


@pytest.mark.slow
def test_ctrl_c_while_kernels_are_compiled_is_quiet(tmp_path: Path) -> None:
    """LLVM calls back into Python there, where an exception would be printed and lost."""
    command = [sys.executable, "-m", "localr1", "run", "tiny-r1", "--device", "cpu", "hi"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    env.pop("NUMBA_CACHE_DIR", None)
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, cwd=ROOT, **pipes) as child:
        while not list(tmp_path.glob("**/compiled/*")):
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=100)[1] == b""
        assert child.returncode == 130


def test_version(run_cli: Cli) -> None:
    assert run_cli("--version") == Result(0, f"localr1 {localr1.__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("frobnicate",), "no such command 'frobnicate'"),
        (("run",), "missing argument"),
        (("run", "tiny-r1", "--no-such-flag"), "no such option: --no-such-flag"),
        (("run", "tiny-r1", "--top-k", "many", "hi"), "--top-k"),
        (("run", "tiny-r1", "--top-p", "1.5", "hi"), "top_p is 1.5 (from --top-p)"),
        (("run", "tiny-r1", "--context", "0", "hi"), "context is 0 (from --context)"),
        (("run", "tiny-r1", "--context", "99999", "hi"), "99,999"),
        (("run", "tiny-r1"), "there is nothing to answer"),
    ],
)
def test_usage_errors(run_cli: Cli, args: tuple[str, ...], words: str) -> None:
    assert_error(run_cli(*args), 2, words)


@pytest.mark.parametrize("command", ["run", "chat", "show", "verify", "bench"])
def test_unknown_models(run_cli: Cli, command: str) -> None:
    result = run_cli(command, "tiny-r2", stdin="hi")
    assert_error(result, 3, "no model is called 'tiny-r2'")
    assert "did you mean tiny-r1?" in result.err
    assert_error(run_cli(command, "nowhere/model.gguf", stdin="hi"), 3, "nowhere/model.gguf")


def test_variables_and_config_set_what_flags_do_not(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALR1_MAX_TOKENS", "3")
    done = json.loads(run_cli("run", "tiny-r1", "--json", SUM).out.splitlines()[-1])
    assert done["stats"]["completion_tokens"] == 3
    monkeypatch.setenv("LOCALR1_MAX_TOKENS", "few")
    assert_error(run_cli("run", "tiny-r1", SUM), 2, "LOCALR1_MAX_TOKENS")


def test_listings(run_cli: Cli, tiny: bytes) -> None:
    listed = json.loads(run_cli("list", "--json").out)["models"]
    here = [(m["name"], m["bytes"]) for m in listed if m["bytes"] is not None]
    assert here == [("tiny-r1", len(tiny))]
    assert "tiny-r1" in run_cli("list").out
    shown = run_cli("show", "tiny-r1").out
    assert "16 routed, 4 a token, 1 shared" in shown and "Apache-2.0" in shown
    assert "What it cannot do" in shown
    facts = json.loads(run_cli("show", "tiny-r1", "--json").out)
    assert facts["config"]["n_layers"] == 4 and facts["chat_template"]
    assert sum(row["bytes"] for row in facts["formats"]) <= facts["bytes"] == len(tiny)


def test_verify_knows_and_notes(run_cli: Cli, tiny: bytes, tmp_path: Path) -> None:
    assert run_cli("verify", "tiny-r1").out.startswith("ok ")
    path = tmp_path / "own.gguf"
    path.write_bytes(tiny)
    first, second = run_cli("verify", path), run_cli("verify", path)
    assert first.out.startswith("noted ") and "no sum was known" in first.err
    assert second.out.startswith("ok ") and second.err == ""
    path.write_bytes(tiny[:-1] + b"\0")
    changed = run_cli("verify", path)
    assert changed.code == 1
    assert changed.out.startswith("differs ")
    assert "error: own.gguf has another sum" in changed.err
    report = json.loads(run_cli("verify", path, "--json").out)
    assert not report["ok"] and report["files"][0]["result"] == "differs"


def test_verify_sums_every_file_of_a_folder(run_cli: Cli, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", ".hidden"):
        (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_text(name)
    assert run_cli("verify", tmp_path / "m").out.count("noted ") == 2


def patch_type(data: bytes, name: bytes, ggml_type: int) -> bytes:
    """Give one row of the tensor table another type."""
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    (dimensions,) = struct.unpack_from("<I", data, at)
    at += 4 + 8 * dimensions
    return data[:at] + struct.pack("<I", ggml_type) + data[at + 4 :]


def patch_template(data: bytes, source: bytes) -> bytes:
    """Put `source` where the chat template is, filled up with spaces."""
    key = b"tokenizer.chat_template"
    at = data.index(key) + len(key) + 4  # the value's type stands between
    (length,) = struct.unpack_from("<Q", data, at)
    at += 8
    return data[:at] + source.ljust(length) + data[at + length :]


ESCAPE = (
    b"{{ ''.__class__.__mro__[1].__subclasses__() }}{{ bos_token }}{{ messages[0]['content'] }}"
)
BAD_FILES: dict[str, tuple[int, str, Callable[[bytes], bytes]]] = {
    "empty": (1, "bad.gguf", lambda data: b""),
    "text": (1, "bad.gguf", lambda data: b"this is no model\n" * 100),
    "cut in the header": (1, "bad.gguf", lambda data: data[:11]),
    "cut in the metadata": (1, "bad.gguf", lambda data: data[:5000]),
    "cut in the weights": (1, "bad.gguf", lambda data: data[:-5000]),
    "other architecture": (5, "mamba9999", lambda data: data.replace(b"deepseek2", b"mamba9999")),
    "type of ik_llama": (5, "IQ2_K", lambda data: patch_type(data, b"blk.1.attn_q_a.weight", 137)),
    "type of nobody": (5, "type 999", lambda data: patch_type(data, b"blk.1.attn_q_a.weight", 999)),
    "escape of a template": (1, "template", lambda data: patch_template(data, ESCAPE)),
    "broken template": (1, "template", lambda data: patch_template(data, b"{% for %}")),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(run_cli: Cli, tiny: bytes, tmp_path: Path, case: str) -> None:
    code, words, damage = BAD_FILES[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(tiny))
    assert_error(run_cli("run", path, "hi"), code, words)


def test_missing_parts(run_cli: Cli, tiny: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(tiny)
    assert_error(run_cli("run", path, "hi"), 3, "m-00002-of-00002.gguf")
    assert_error(run_cli("run", tmp_path, "hi"), 3, "config.json")


def test_no_room(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    little = SimpleNamespace(available=1 << 20, total=1 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert_error(run_cli("run", "tiny-r1", "hi"), 4, "RAM")


def test_full_context(run_cli: Cli) -> None:
    assert_error(run_cli("run", "tiny-r1", "--context", "12", SUM), 6, "12")


def test_a_bug_is_one_sentence(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entries", lambda: 1 // 0)
    result = run_cli("list")
    assert result.code == 1
    assert result.err.startswith("error: internal: ZeroDivisionError") and "--debug" in result.err
    monkeypatch.setattr(sys, "argv", ["localr1", "list", "--debug"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_interrupt_is_130(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "entries", interrupt)
    assert run_cli("list") == Result(130, "", "")


def start(
    *args: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE, shell: str = ""
) -> subprocess.Popen[bytes]:
    """A real process, as a shell starts it; `shell` is a redirection."""
    command = [sys.executable, "-m", "localr1", *args]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("list", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_closed_stdin_is_no_stdin() -> None:
    process = start("run", "tiny-r1", "--max-tokens", "2", "hi", shell="<&-")
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")


def test_an_interrupt_while_stdin_is_read() -> None:
    process = start("run", "tiny-r1", SUM, stdin=subprocess.PIPE)
    time.sleep(1)  # by then it reads stdin, which stays open
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")
