"""The process that a model's program runs in: ``python -I code_child.py IN OUT``, driven by ``code_sandbox``.

It limits itself before it runs anything: processor time, memory, the size of files, and, by an audit hook, what a
program may ask of the system. One line of JSON for each test goes to OUT, each with a word that only the parent knows.
This file imports nothing of the library: it starts in the time that Python takes.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CLIP = 200
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.",
    "os.kill", "signal.pthread_kill", "ctypes.", "shutil.", "os.remove", "os.rename", "os.rmdir", "os.chmod",
    "os.chown", "os.link", "os.symlink", "os.truncate", "os.putenv", "os.chdir", "resource.", "sys.addaudithook",
    "webbrowser.", "ftplib.", "smtplib.", "http.", "urllib.", "sqlite3.",
)  # fmt: skip


def limit(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    """Raises nothing where a limit is lower already."""
    import resource

    for what, most in (
        (resource.RLIMIT_CPU, max(1, int(seconds) + 1)),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    signal.setitimer(
        signal.ITIMER_REAL, seconds + 1
    )  # a program that only waits ends too, whatever became of the parent


def guard(folder: str) -> None:
    """From here on, programs may compute, import, read, and write in their own folder."""
    inside = os.path.realpath(folder) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED) or (
            event == "import" and str(arguments[0]).partition(".")[0] in ("ctypes", "_ctypes")
        ):
            raise PermissionError(f"a program may not do this here: {event}")
        if event in ("open", "os.mkdir"):
            path, *rest = arguments
            writing = event == "os.mkdir" or bool(rest[1] & WRITES if isinstance(rest[1], int) else False)
            if writing and not (isinstance(path, str) and os.path.realpath(path).startswith(inside)):
                raise PermissionError(f"a program may write in its own folder only, not to {path!r}")

    sys.addaudithook(hook)


def clipped(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<no repr: {type(error).__name__}>"
    return text if len(text) <= CLIP else text[: CLIP - 1] + "…"


def raises(kind: type[BaseException], function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a call raises; for tests."""
    try:
        function(*arguments)
    except kind:
        return True
    return False


def judge(test: str, space: dict[str, Any]) -> str:
    """Run one assert; why it fails, or nothing."""
    try:
        statement = ast.parse(test).body[0]
        if not isinstance(statement, ast.Assert):
            return "no assert"
        compared = statement.test
        if isinstance(compared, ast.Compare) and len(compared.ops) == 1 and isinstance(compared.ops[0], ast.Eq):
            got = eval(compile(ast.Expression(compared.left), "<test>", "eval"), space)
            wanted = eval(compile(ast.Expression(compared.comparators[0]), "<test>", "eval"), space)
            if type(got) is bool or type(wanted) is bool:
                same = got is wanted  # 1 == True, and is not what was asked for
            else:
                same = bool(got == wanted)
            return "" if same else f"{ast.unparse(compared.left)} gave {clipped(got)}; expected {clipped(wanted)}"
        held = bool(eval(compile(ast.Expression(compared), "<test>", "eval"), space))
        return "" if held else f"{ast.unparse(compared)} does not hold"
    except BaseException as error:
        return f"{test.removeprefix('assert ')} raised {type(error).__name__}: {str(error)[:CLIP]}"


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as handle:
        task = json.load(handle)
    os.unlink(sys.argv[1])
    out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
    word = task["word"]

    def tell(**line: Any) -> None:
        os.write(out, (json.dumps({"word": word, **line}) + "\n").encode())

    limit(task["seconds"], task["memory_bytes"], task["file_bytes"])
    guard(os.getcwd())
    space: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(task["program"], "<program>", "exec"), space)
    except BaseException as error:
        tell(problem=f"{type(error).__name__}: {str(error)[:CLIP]}")
        os._exit(0)
    space.setdefault("raises", raises)
    for index, test in enumerate(task["tests"]):
        tell(test=index, said=judge(test, dict(space)))
    os._exit(0)


if __name__ == "__main__":
    main()
