"""Programs that read keys from the terminal while a pipe is their standard input, and a JVM under a limit."""

import shlex

import pytest

from tests.support.terminals import Terminal

from . import asked, program

PASSWORD = "import getpass, sys; print(len(getpass.getpass('PW: ')), sys.stdin.read())"
LOADED = """
import java.util.*;
public class Held {
  public static void main(String[] words) {
    List<byte[]> held = new ArrayList<>();
    try { for (;;) held.add(new byte[1 << 20]); }
    catch (OutOfMemoryError error) { int count = held.size(); held = null; System.out.println("held " + count); }
    System.out.println("processors " + Runtime.getRuntime().availableProcessors());
  }
}
"""


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")


def test_getpass_reads_the_terminal_without_echo(someone, rules):
    line = f"echo data | $EXEAT /usr/bin/python3 -c {shlex.quote(PASSWORD)}"
    terminal = Terminal.of_line(someone, rules, line)
    terminal.until(b"PW: ")
    terminal.type(b"secret\n")
    assert b"secret" not in terminal.until(b"6 data")
    terminal.ended()
    terminal.hang_up()


@pytest.mark.parametrize("line", ["seq 1000 | $EXEAT less", "$EXEAT seq 1000 | less", "echo | $EXEAT seq 1000 | less"])
def test_less_reads_keys_inside_and_beside_a_run(someone, rules, line):
    program("less")
    terminal = Terminal.of_line(someone, rules, f"TERM=xterm; export TERM; {line}; stty -a")
    terminal.until(b":")
    terminal.type(b"G")
    terminal.until(b"1000")
    terminal.type(b"q")
    assert b" icanon" in terminal.until(b"echoke"), "the terminal is as it was"
    terminal.ended()
    terminal.hang_up()


def test_fzf_reads_keys_while_its_output_is_captured(someone, rules):
    program("fzf")
    line = "stty rows 24 cols 80; said=$(printf 'one\\ntwo\\n' | TERM=xterm $EXEAT fzf); echo chose:$said"
    terminal = Terminal.of_line(someone, rules, line)
    terminal.until(b"one")
    terminal.type(b"two")
    terminal.until(b"1/2")  # it has filtered
    terminal.type(b"\r")
    terminal.until(b"chose:two\r\n")
    terminal.ended()
    terminal.hang_up()


def test_jvm_under_a_limit_ends_with_its_own_message(someone, rules):
    """Its heap is of the limit, so it says OutOfMemoryError; with the host's memory for its own the kernel killed it."""
    program("java")
    (someone.work / "Held.java").write_text(LOADED)
    asked(program("javac"), str(someone.work / "Held.java"))
    words = ["--memory", "512MB", *([] if someone.user else ["--cpu", "1"])]
    done = someone.exeat("run", "--quiet", "--rules", rules, *words, "--", "java", "-cp", someone.work, "Held")
    held, processors = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr
    assert 40 < int(held.split()[1]) <= 130, "a quarter of it"
    assert someone.user or processors == "processors 1"


def test_lscpu_and_nproc_agree(someone, rules):
    count = asked("nproc")
    done = someone.exeat("run", "--quiet", "--rules", rules, "--", "sh", "-c", "nproc; lscpu -p=CPU | grep -vc '#'")
    assert done.stdout.decode().split() == [count, count], done.stderr


def test_bubblewrap_inside_gives_a_hint(someone, rules):
    done = someone.exeat("run", "--rules", rules, "--", program("bwrap"), "--dev-bind", "/", "/", "true")
    assert b"was refused: the task is in a sandbox already" in done.stderr
