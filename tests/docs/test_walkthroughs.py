"""Runs the pages that a reader follows: their files are written, their commands run, what they print is compared.

On such a page

- a `yaml` block whose first line is `# NAME.yaml` is a file of the reader's directory;
- in a `console` block, a line with `$ ` is a command, continued after `\\` at its end; what follows is its output, where
  `...` stands for anything, within a line or for lines. A command ends with 0, or with N where `# status N` ends its line;
- `<!-- not run: REASON -->` above a block passes over it;
- `<!-- in the background -->` above a block starts its commands and goes on: the reader has a second terminal;
- `<!-- wait until: COMMAND -->` stands for what the reader has waited for, or done before: it is tried until it ends with 0;
- `<!-- EVENT is: COMMAND -->` stands for a reader who copies an id: `EVENT` in later commands is what this one prints.

The commands run as an ordinary user of the page's own, in a local internet where every name of four zones has a server
that answers with 200. The reader's shell has the keys of models that a page has put into it, with made-up values.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.lab import Lab, Name
from tests.support import harness

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("walkthroughs")]
ROOT = harness.PROJECT
PAGES = [
    ROOT / "README.md",
    *sorted(page for kind in ("start", "tutorials", "how-to") for page in (ROOT / "docs" / kind).glob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- (?:not run: (?P<skip>[^>]+)|(?P<background>in the background)) -->\n)?"
    r"^```(?P<kind>yaml|console)\n(?P<text>.*?)^```$"
    r"|^<!-- wait until: (?P<wait>[^\n]+) -->$"
    r"|^<!-- (?P<name>[A-Z]+) is: (?P<value>[^\n]+) -->$",
    re.MULTILINE | re.DOTALL,
)
KEYS = {"ANTHROPIC_API_KEY": f"sk-ant-api03-{'an-example-' * 4}", "OPENAI_API_KEY": f"sk-proj-{'an-example-' * 4}"}
ENDED = "\x1e"  # in front of each command's status and directory


@dataclass(frozen=True)
class Step:
    """A command of a page: its status, and the lines that the page shows of its output."""

    command: str
    status: int
    shown: tuple[str, ...]


def steps_of(block: str) -> list[Step]:
    """Return the commands of a `console` block."""
    steps = []
    for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = re.sub(r"\\\n", " ", text).partition("\n")
        command, _, status = command.partition("  # status ")
        steps.append(Step(re.sub(r" {2,}# .*", "", command), int(status or 0), tuple(output.rstrip("\n").splitlines())))
    return steps


def matches(shown: tuple[str, ...], printed: str) -> bool:
    """Whether what a page shows is what was printed: `...` alone for any lines, within a line for any characters."""
    lines = [
        r"(?:[^\n]*\n)*?" if line.strip() == "..." else re.escape(line.rstrip()).replace(r"\.\.\.", "[^\n]*") + r"\n"
        for line in shown
    ]
    return re.fullmatch("".join(lines), "".join(f"{line.rstrip()}\n" for line in printed.splitlines())) is not None


@pytest.fixture(scope="module")
def lab():
    harness.needs_root()
    with Lab({f"*.{zone}": Name.at("93.184.216.34") for zone in ("com", "org", "io", "example")}) as made:
        yield made


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_of_a_page_work_in_order(lab, page):
    with Reader(lab, Lab.ORDINARY + PAGES.index(page), page.stem) as reader:
        for block in BLOCK.finditer(page.read_text()):
            if block["wait"]:
                reader.wait_until(block["wait"])
            elif block["name"]:
                reader.copy(block["name"], block["value"])
            elif block["kind"] == "yaml" and not block["skip"]:
                if name := re.match(r"# ([\w./-]+\.yaml)\n", block["text"]):
                    reader.write(name[1], block["text"])
            elif not block["skip"]:
                for step in steps_of(block["text"]):
                    if block["background"]:
                        reader.start(step.command)
                    else:
                        reader.follow(step)


class Reader:
    """A user with a home and a directory of their own, who follows one page."""

    def __init__(self, lab: Lab, uid: int, name: str) -> None:
        self._lab, self._uid = lab, uid
        self._home = lab.home(uid)
        self._work = lab.workspace(uid, name)
        self._started: list[subprocess.Popen] = []
        self._copied: dict[str, str] = {}
        self._environment = {**KEYS, "XDG_RUNTIME_DIR": str(lab.workspace(uid, f"run-{name}"))}  # as pam_systemd does

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=30)

    def _run(self, script: str, **more: str) -> subprocess.CompletedProcess:
        bash = ["bash", "-c", script]
        return self._lab.run(bash, user=self._uid, cwd=self._work, env=self._environment, timeout=60, **more)

    def write(self, name: str, text: str) -> None:
        """Write a file, by its path from the current directory."""
        path = self._work / name
        self._run(f"mkdir -p {shlex.quote(str(path.parent))} && cat >{shlex.quote(str(path))}", input=text)

    def copy(self, name: str, command: str) -> None:
        """Keep what a command prints, to replace a name in later commands."""
        done = self._run(command)
        assert done.stdout.strip(), f"{name}: {done.stderr}"
        self._copied[name] = done.stdout.strip()

    def _with_copies(self, command: str) -> str:
        return re.sub(r"\b[A-Z]+\b", lambda word: self._copied.get(word[0], word[0]), command)

    def start(self, command: str) -> None:
        """Start a command in a second terminal."""
        print(f"$ {command}  # in the background")
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        bash = ["bash", "-c", self._with_copies(command)]
        self._started.append(self._lab.start(bash, user=self._uid, cwd=self._work, env=self._environment, **silent))

    def wait_until(self, command: str) -> None:
        """Try a command until it ends with 0."""
        script = f"until {{ {command}; }} >/dev/null 2>&1; do sleep 0.2; done"
        self._run(script)

    def follow(self, step: Step) -> None:
        """Run a command to its end, and compare its status and its output with the page's."""
        script = f'exec 2>&1\n{self._with_copies(step.command)}\nprintf "{ENDED}%s %s" "$?" "$PWD"'
        done = self._run(script)
        printed, _, end = done.stdout.rpartition(ENDED)
        status, _, directory = end.partition(" ")
        print(f"$ {step.command}\n{printed}")  # `pytest -s` shows it to the author of a page
        assert int(status) == step.status, f"status {status}, of $ {step.command}"
        if step.shown:
            assert matches(step.shown, printed.replace(str(self._home), "~")), f"$ {step.command}"
        self._work = Path(directory)


def test_pages_are_parsed_by_the_conventions():
    block = "$ exeat check web.yaml\nweb.yaml: clean\n$ false  # status 1\n$ a \\\n    b   # a note\n"
    assert steps_of(block) == [
        Step("exeat check web.yaml", 0, ("web.yaml: clean",)),
        Step("false", 1, ()),
        Step("a      b", 0, ()),
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (("a",), "a\n", True),
        (("a",), "b\n", False),
        (("a ... c",), "a b c\n", True),
        (("a ... c",), "a b\nc\n", False),
        (("...", "z"), "a\nb\nz\n", True),
        (("a", "..."), "b\nc\n", False),
    ],
)
def test_shown_output_is_compared(shown, printed, same):
    assert matches(shown, printed) is same
