"""Run what drives compiled code under the compiler's sanitizers: `python -m tests.sanitize [MINUTES]`, or `make sanitize`.

Memory that is used after it was freed or beyond its end, and what C leaves undefined, ends it with 1 and says where. The
library is compiled anew, beside the one that is there, and loaded into a process of its own, with the sanitizers'
runtime before everything else. It takes gcc. Source: Instrumentation Options, in gcc's manual.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from enforcer.sandbox import init
from proxy.compiled import library
from proxy.compiled.build import compile_c

_SANITIZERS = ("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_FLAGS = (*_SANITIZERS, "-shared", "-fPIC", "-fvisibility=hidden")
_OPTIONS = 'const char *__{0}_default_options(void) {{ return "{1}"; }}\n'
_RUNTIMES = ("libasan.so", "libubsan.so")
_TESTS = (
    "splice", "splice_backpressure", "concurrent_connections", "changed_first_bytes", "rule_limits", "failures",
    "hostile_clients",
)  # fmt: skip
# What counts pages counts those that the sanitizer keeps from being used again, too.
_NOT = "not test_ended_pair_keeps_no_memory"
_SANITIZED = "EXEAT_SANITIZED"  # where the library is, in the process that loads it


def main() -> int:
    minutes = sys.argv[1] if len(sys.argv) > 1 else "1"
    if made := os.environ.get(_SANITIZED):
        return _inside(made, minutes)
    with tempfile.TemporaryDirectory() as directory:
        if status := _test_init(directory):
            return status
        made = os.path.join(directory, "relay.so")
        if problem := compile_c([library.SOURCE], made, (*_FLAGS, f'-DEXEAT_SOURCE="{library.digest()}"')):
            sys.exit(problem)
        return _run(["-m", "tests.sanitize", minutes], made)


def _test_init(directory: str) -> int:
    """Run the tests of how a task begins, each of whose steps fails once, and see what was found in its processes.

    They say so in files, for what they write to their standard error is the task's; and they have no variables, so what
    the sanitizer is to do is compiled in.
    """
    made, options = os.path.join(directory, "exeat-init"), os.path.join(directory, "options.c")
    found = os.path.join(directory, "found")
    said = ("asan", f"detect_leaks=0:log_path={found}"), ("ubsan", f"log_path={found}")
    Path(options).write_text("".join(_OPTIONS.format(*each) for each in said), encoding="ascii")
    flags = (*_SANITIZERS, "-pie", "-fPIE", "-DEXEAT_HOSTED", f'-DEXEAT_SOURCE="{init.digest()}"')
    if problem := compile_c([init.SOURCE, options], made, flags):
        sys.exit(problem)
    words = [sys.executable, "-m", "pytest", "-p", "no:xdist", "tests/enforcer/sandbox/test_task_start_steps.py"]
    status = subprocess.run(words, env={**os.environ, _SANITIZED: made}).returncode
    told = [file.read_text() for file in Path(directory).glob("found*")]
    print(*told, f"{len(told)} init processes have reported something", sep="\n")
    return status or bool(told)


def _run(words: list[str], made: str, **more: str) -> int:
    """Run Python with the sanitizers' runtime before everything else, and with where the library is."""
    variables = {
        _SANITIZED: made,
        "LD_PRELOAD": " ".join(map(_runtime, _RUNTIMES)),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own: it frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        **more,
    }
    return subprocess.run([sys.executable, *words], env={**os.environ, **variables}).returncode


def _runtime(name: str) -> str:
    words = [os.environ.get("CC", "cc"), f"-print-file-name={name}"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        sys.exit(f"{name} is missing: install gcc with its sanitizers (libgcc-12-dev or newer)")
    return os.path.realpath(found)


def _inside(made: str, minutes: str) -> int:
    del (
        os.environ["LD_PRELOAD"],
        os.environ[_SANITIZED],
    )  # programs that are started from here have nothing to do with it
    library.LIBRARY = made
    from proxy.event_loop.poller import COMPILED

    if COMPILED is None:
        sys.exit("the library can't be loaded")
    import pytest

    from tests.fuzz.__main__ import main as fuzz

    tests = [f"tests/proxy/gate/test_{name}.py" for name in _TESTS]
    tests += ["tests/proxy/compiled/test_library.py", "tests/proxy/event_loop/test_poller.py"]
    return int(pytest.main(["-s", "-p", "no:xdist", "-k", _NOT, *tests])) or fuzz([minutes, "passed on"])


if __name__ == "__main__":
    raise SystemExit(main())
