"""Runs the pages that a reader follows: their files are written, their commands run, what they print is compared.

On such a page

- a `yaml` block whose first line is `# NAME.yaml` is a file of the reader's directory;
- in a `console` block, a line with `$ ` is a command, continued after `\\` at its end; what follows is its output, where
  `...` stands for anything, within a line or for lines. A command ends with 0, or with N where `# status N` ends its line;
- `<!-- not run: REASON -->` above a block passes over it.

The commands run as an ordinary user in a local internet where every name of four zones has a server that answers with 200.
The reader's shell has the keys of models that a page has put into it, with made-up values.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import harness
from tests.lab import Lab, Name

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("walkthroughs")]
ROOT = harness.PROJECT
PAGES = [
    ROOT / "README.md",
    *sorted(page for kind in ("start", "tutorials") for page in (ROOT / "docs" / kind).glob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<skip>[^>]+) -->\n)?^```(?P<kind>yaml|console)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
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
def test_page_can_be_followed_from_its_first_command_to_its_last(lab, page):
    work = lab.workspace(Lab.ORDINARY, page.stem)
    home = lab.home(Lab.ORDINARY)
    for block in BLOCK.finditer(page.read_text()):
        if block["skip"]:
            continue
        if block["kind"] == "yaml":
            if name := re.match(r"# ([\w./-]+\.yaml)\n", block["text"]):
                write(lab, work / name[1], block["text"])
            continue
        for step in steps_of(block["text"]):
            script = f'cd {shlex.quote(str(work))}\n{step.command}\nprintf "{ENDED}%s %s" "$?" "$PWD"'
            argv = ["bash", "-c", f"exec 2>&1\n{script}"]
            done = lab.run(argv, user=Lab.ORDINARY, cwd=work, env=KEYS, timeout=100)
            printed, _, end = done.stdout.rpartition(ENDED)
            status, _, directory = end.partition(" ")
            print(f"$ {step.command}\n{printed}")  # `pytest -s` shows it to whoever writes a page
            assert int(status) == step.status, f"status {status}, of $ {step.command}"
            if step.shown:
                assert matches(step.shown, printed.replace(str(home), "~")), f"$ {step.command}"
            work = Path(directory)


def write(lab, path: Path, text: str) -> None:
    """Write a file as the reader."""
    lab.run(["tee", path], user=Lab.ORDINARY, input=text)


def test_pages_are_read_as_they_are_meant():
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
def test_what_is_shown_is_compared(shown, printed, same):
    assert matches(shown, printed) is same
