"""`sandbox` and `commands`: accepted values, errors with their places, and merging of several files."""

import pytest

from rules.decision import ApprovalTerms
from rules.diff.compare import compare
from rules.loading.load import read
from rules.problems import RuleFileError
from rules.sandbox import NO_SANDBOX_FLOOR, NO_SANDBOX_SETTINGS, MergeTerms, SandboxSettings, SandboxUser, WorkspaceMode
from rules.verdicts import Verdict
from tests.rules.rule_texts import loaded, policy

FULL = """{read: [/srv/data, ~/models/], write: /scratch, hide: [~/.netrc, "**/.env"], workspace: review, protected: "**/*.lock",
  approval: {by: release, count: 2, hold: 1m, open: 1h},
  caches: {pip: ~/.cache/pip, apt: /var/cache/apt}, devices: kvm, environment: {keep: [NO_*, EDITOR], set: {A: "1"}}, user: root, hostname: box-1,
  timeout: 2h, limits: {memory: 2GB, cpu: 1.5, processes: 200, files: 1024, disk: 5GB}}"""


def box(text):
    return policy(f"version: 1\nsandbox: {text}").box


def test_every_sandbox_key_is_parsed():
    assert box(FULL) == SandboxSettings(
        read=("/srv/data", "~/models"),
        write=("/scratch",),
        hide=("**/.env", "~/.netrc"),
        workspace=WorkspaceMode.REVIEW,
        protected=("**/*.lock",),
        approval=(MergeTerms("t:sandbox.approval", ApprovalTerms("release", 2, False, 60.0, 3600.0, lasts=0.0)),),
        caches=(("apt", "/var/cache/apt"), ("pip", "~/.cache/pip")),
        devices=("kvm",),
        keep=("EDITOR", "NO_*"),
        variables=(("A", "1"),),
        user=SandboxUser.ROOT,
        hostname="box-1",
        timeout=7200.0,
        memory=2 << 30,
        cpu=1.5,
        processes=200,
        files=1024,
        disk=5 << 30,
    )
    plain = policy("version: 1")
    assert (plain.box, plain.floor, plain.commands) == (NO_SANDBOX_SETTINGS, NO_SANDBOX_FLOOR, ())


WRONG = [  # `^` stands before the place
    ("read: ^srv", "`srv` must be a whole path, as in `/srv/data`, or one in your home: `~/data`"),
    ("read: ^~bob/x", "`~bob/x` must be a whole path, as in `/srv/data`, or one in your home: `~/data`"),
    ("read: ^/srv/../etc", "`/srv/../etc`: spell it without `.`, `..` and `//`"),
    ("read: [/a, ^/srv//x]", "`/srv//x`: spell it without `.`, `..` and `//`"),
    ("read: ^'/srv/*'", "`/srv/*` is a pattern: name a directory or file; only `hide` takes `**/GLOB`"),
    ('read: ^"/a\\nb"', "`/a\\nb` is longer than 4096 bytes, or has characters that don't show"),
    ("hide: ^'*.pem'", "`*.pem`: a pattern begins with `**/`, as in `**/.env` or `**/secrets/*.json`"),
    ("hide: ^'**/a/**/b'", "`**/a/**/b`: `**` stands at the beginning, and nowhere else"),
    ("hide: ^'**/../b'", "`**/../b`: spell it without `.`, `..` and `//`"),
    ("protected: ^/etc/x", "`/etc/x` is relative to the workspace: write it without the `/`"),
    ("protected: ^'a/**b'", "`a/**b`: `**` stands for whole directories, as in `**/package-lock.json`"),
    ("workspace: ^revue", "`revue` is not a value of `workspace`, which is one of review, direct; did you mean `review`?"),
    ("user: ^admin", "`admin` is not a value of `user`, which is one of task, root"),
    ("hostname: ^a.b", "`a.b` must be at most 63 letters, digits and hyphens, without a dot"),
    ("timeout: ^2", "`2`: a duration is a number and a unit: `90s`, `10m`, `2h`, `1d`"),
    ("caches: {pip: ^/usr/x}", "`/usr/x`: a cache lies below `~`, the task's home, `/var/cache` or `/var/lib`"),
    ("caches: {pip: ^~}", "`pip` has no value; put ~ in quotes if it is one"),
    ("caches: {pip: ^'~'}", "`~`: a cache lies below `~`, the task's home, `/var/cache` or `/var/lib`"),
    ("caches: {^../x: ~/y}", "`../x` must be at most 63 lower-case letters, digits and hyphens: `x`"),
    ("caches: {a: ~/x, b: ^~/x/y}", "`~/x/y` and `~/x`, of `a`, overlap: choose separate paths"),
    ("environment: {keep: ^'*'}", "`*` would keep all variables, also credentials: list those that are needed"),
    ("environment: {keep: ^'A-B'}", "`A-B` is not the name of a variable, with or without `*`"),
    ("environment: {set: {^1A: x}}", "`1A` is not the name of a variable"),
    ("environment: {^pass: A}", "`pass` is not a key of `environment`"),
    ("approval: ^{}", "`approval` is empty: leave it out"),
    ("approval: ^release", "`approval` of a sandbox must be a mapping of `by`, `count`, `self`, `hold`, `open`"),
    ("approval: {^covers: rule}", "`covers` is not a key of `approval` of a sandbox"),
    ("approval: {^for: 1h}", "`for` is not a key of `approval` of a sandbox"),
    ("approval: {by: a, self: ^true}", "`self: true` can't be combined with `by`: the user may not be in that group"),
    ("limits: ^{}", "`limits` is empty: leave it out"),
    ("limits: {memory: ^1MB}", "`1MB` of memory is too little for anything to start: at least 16MB"),
    ("limits: {cpu: ^1/2}", "`1/2` is no number of cores; one is written like `2` or `0.5`"),
    ("limits: {cpu: ^'0.0'}", "`0.0` is no number of cores; one is written like `2` or `0.5`"),
    ("limits: {processes: ^1e3}", "`1e3` is not a number between 1 and 1000000000"),
    ("limits: {files: ^3}", "`3` open files are too few for anything to start: at least 16"),
    ("limits: {^connections: 3}", "`connections` is not a key of `limits` of a sandbox"),
    ("^writes: /x", "`writes` is not a key of `sandbox`; did you mean `write`?"),
    ("^memory: 2GB", "`memory` is not a key of `sandbox`; did you mean `memory` under `limits`?"),
    ("^memroy: 2GB", "`memroy` is not a key of `sandbox`; did you mean `memory` under `limits`?"),
    ("^env: [A]", "`env` is not a key of `sandbox`; did you mean `environment`?"),
    ("limits: {^pids: 3}", "`pids` is not a key of `limits` of a sandbox; did you mean `processes`?"),
    ("limits: {^timeout: 2m}", "`timeout` is not a key of `limits` of a sandbox; did you mean `timeout` of `sandbox`, beside `limits`?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_malformed_sandbox_settings_are_errors_with_their_line(text, message):
    before, _, after = f"    {text}".partition("^")
    with pytest.raises(RuleFileError) as error:
        loaded(f"version: 1\nsandbox:\n{before}{after}")
    assert [problem[1:4] for problem in error.value.problems] == [(3, len(before) + 1, message)]


def test_commands_are_parsed():
    said = policy(
        'version: 1\nname: t\ncommands:\n- {id: b, run: "terraform  apply*", action: deny, why: no, for: {tasks: m-*}}\n'
        "- {id: a, run: /usr/bin/git push *, action: flag}"
    ).commands
    first, second = said
    assert (first.id, first.cite, first.words, first.action) == ("a", "t:a", ("/usr/bin/git", "push", "*"), Verdict.FLAG)  # fmt: skip
    assert (second.cite, second.words, second.action, second.why) == (
        "t:b",
        ("terraform", "apply*"),
        Verdict.DENY,
        "no",
    )
    assert second.for_ is not None
    assert second.for_.matches("m-1", {})


WRONG_COMMANDS = [
    ("- {id: a, run: x, action: allow}", "write `deny`, `ask` or `flag`: programs that no command matches may start"),
    ("- {id: a, run: x}", "a command needs `action`"),
    ("- {id: a, run: [x], action: deny}", "`run` must be one word or text, not a list"),
    ("- {id: a, run: ./x, action: deny}", "`./x` must be a program's name or its whole path, as in `/usr/bin/terraform`"),
    ('- {id: a, run: "x\\ty", action: deny}', "`x\\ty` has characters that don't show, or no word at all"),
    ("- {id: a, run: x, action: deny}\n- {id: a, run: y, action: deny}", "the id of this command is also that of the command in line 4"),
    (" [{id: a, run: x, action: deny}, {id: a, run: y, action: deny}]", "the id of this command is also that of the command in line 4"),
    ("- {id: r, run: x, action: deny}", "the id of this command is also that of the rule in line 6"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG_COMMANDS, ids=[message[:40] for _, message in WRONG_COMMANDS])
def test_malformed_commands_are_errors(text, message):
    rule = "\nrules:\n- {id: r, to: x.example, action: deny}"
    with pytest.raises(RuleFileError) as error:
        loaded(f"version: 1\nname: t\ncommands:\n{text}{rule}")
    assert [problem.message for problem in error.value.problems] == [message]


def several(directory, *files, mandatory=()):
    """Load files that say no more than their `sandbox`: `layer` and the section."""
    paths = []
    for number, (layer, said) in enumerate(files):
        path = directory / f"{'l' if layer else 'u'}{number}.yaml"
        head = f"layer: {layer}\n" if layer else ""
        path.write_text(f"version: 1\n{head}sandbox: {said}\n")
        paths.append(path)
    return read(paths, mandatory=mandatory).policy


def objections(directory, *files):
    with pytest.raises(RuleFileError) as error:
        several(directory, *files)
    return [
        f"{problem.file.rpartition('/')[2]}:{problem.line}:{problem.column}: {problem.message}".replace(
            f"{directory}/", ""
        )
        for problem in error.value.problems
    ]


def merge(name, **terms):
    return MergeTerms(f"{name}:sandbox.approval", ApprovalTerms(lasts=0.0, **terms))


TOGETHER = [
    # a layer, a file without, and what counts
    ("{timeout: 1h}", "{timeout: 2h}", SandboxSettings(timeout=3600.0)),
    ("{timeout: 2h}", "{timeout: 1h}", SandboxSettings(timeout=3600.0)),
    (
        "{limits: {memory: 2GB, cpu: 1}}",
        "{limits: {memory: 1GB, files: 64}}",
        SandboxSettings(memory=1 << 30, cpu=1.0, files=64),
    ),
    ("{hide: /a, protected: x}", "{hide: /b, protected: y}", SandboxSettings(hide=("/a", "/b"), protected=("x", "y"))),
    ("{workspace: direct}", "{workspace: review}", SandboxSettings(workspace=WorkspaceMode.REVIEW)),
    ("{workspace: review}", "{}", SandboxSettings(workspace=WorkspaceMode.REVIEW)),
    ("{user: root}", "{user: task}", SandboxSettings(user=SandboxUser.TASK)),
    ("{read: [/a, /b]}", "{read: /a/c}", SandboxSettings(read=("/a/c",))),
    ("{read: [/a, /b]}", "{write: /c}", SandboxSettings(read=("/a", "/b"), write=("/c",))),
    ("{read: /a}", "{read: []}", SandboxSettings()),
    ("{read: /}", "{read: [/a, /b/c]}", SandboxSettings(read=("/a", "/b/c"))),
    ("{read: '~'}", "{read: ~/x}", SandboxSettings(read=("~/x",))),
    ("{environment: {keep: [A_*]}}", "{environment: {keep: [A_B, A_C*]}}", SandboxSettings(keep=("A_B", "A_C*"))),
    (
        "{environment: {set: {A: x}}}",
        "{environment: {set: {B: y}}}",
        SandboxSettings(variables=(("A", "x"), ("B", "y"))),
    ),
    ("{caches: {a: ~/a, b: ~/b}}", "{caches: {a: ~/a}}", SandboxSettings(caches=(("a", "~/a"),))),
    ("{devices: [gpu, kvm]}", "{devices: nvidia0}", SandboxSettings(devices=("nvidia0",))),
    ("{devices: [gpu, kvm]}", "{}", SandboxSettings(devices=("gpu", "kvm"))),
    ("{hostname: h}", "{}", SandboxSettings(hostname="h")),
    ("{approval: {count: 2}}", "{}", SandboxSettings(approval=(merge("l0", needed=2),))),
    ("{}", "{approval: {count: 1}}", SandboxSettings(approval=(merge("u1", by_self=True),))),
    (
        "{approval: {by: release, hold: 1h}}",
        "{approval: {by: mine, self: false, hold: 1s}}",
        SandboxSettings(approval=(merge("l0", by="release", hold=3600.0), merge("u1", by="mine", hold=1.0))),
    ),
]


@pytest.mark.parametrize(("layer", "other", "counts"), TOGETHER, ids=[f"{a} {b}" for a, b, _ in TOGETHER])
def test_settings_of_layer_and_file_combine(tmp_path, layer, other, counts):
    assert several(tmp_path, ("mandatory", layer), (None, other)).box == counts
    swapped = several(tmp_path, (None, other), ("ceiling", layer)).box
    assert str(swapped).replace("l1:", "l0:").replace("u0:", "u1:") == str(counts), "in whatever order"


PAST = [
    ("{workspace: review}", "{workspace: direct}", "`workspace: direct` is laxer than in"),
    ("{user: task}", "{user: root}", "`user: root` is laxer than in"),
    ("{read: /a}", "{read: /ab}", "`/ab` is not in the `read` of"),
    ("{read: []}", "{read: /a}", "`/a` is not in the `read` of"),
    ("{write: /a}", "{write: [/a/b, /]}", "`/` is not in the `write` of"),
    ("{caches: {a: ~/a}}", "{caches: {b: ~/b}}", "`b: ~/b` is not in the `caches` of"),
    ("{caches: {a: ~/a}}", "{caches: {a: ~/c}}", "`a: ~/c` is not in the `caches` of"),
    ("{caches: {}}", "{caches: {a: ~/c}}", "`a: ~/c` is not in the `caches` of"),
    ("{environment: {keep: A_B}}", "{environment: {keep: A_*}}", "`A_*` is not in the `keep` of"),
    ("{environment: {set: {A: x}}}", "{environment: {set: {A: y}}}", "`A` has another value in"),
    ("{devices: nvidia0}", "{devices: gpu}", "`gpu` is not in the `devices` of"),
    ("{devices: gpu}", "{devices: [nvidia0, kvm]}", "`kvm` is not in the `devices` of"),
    ("{devices: []}", "{devices: kvm}", "`kvm` is not in the `devices` of"),
    ("{hostname: h}", "{hostname: g}", "`hostname` is another in"),
]


@pytest.mark.parametrize(("layer", "other", "message"), PAST, ids=[f"{a} {b}" for a, b, _ in PAST])
def test_no_file_loosens_a_layer(tmp_path, layer, other, message):
    (told,) = objections(tmp_path, ("mandatory", layer), (None, other))
    place, _, said = told.partition(": ")
    assert place.startswith("u1.yaml:2:")
    assert said == f"{message} `l0.yaml`, a layer"


def test_two_layers_allow_what_both_allow(tmp_path):
    both = several(
        tmp_path,
        ("mandatory", "{read: [/a, /b/c], devices: [gpu, kvm], caches: {a: ~/a, b: ~/b}, environment: {keep: [A_*, B]}, timeout: 2h}"),
        ("mandatory", "{read: [/a/x, /b, /d], devices: [kfd, nvidia0], caches: {a: ~/a}, environment: {keep: [A_B, C]}, timeout: 1h, write: []}"),
    )  # fmt: skip
    assert both.box == SandboxSettings(
        read=("/a/x", "/b/c"), caches=(("a", "~/a"),), devices=("kfd", "nvidia0"), keep=("A_B",), timeout=3600.0
    )
    assert both.floor.box == both.box
    assert both.floor.stated == {"read", "caches", "devices", "keep", "timeout", "write"}
    (told,) = objections(tmp_path, ("mandatory", "{hostname: a}"), ("mandatory", "{hostname: b}"))
    assert told.endswith("`hostname` is another in `l0.yaml`, a layer too")


def test_roots_files_are_always_layers(tmp_path):
    root = tmp_path / "root.yaml"
    root.write_text("version: 1\nsandbox: {timeout: 5m, write: []}\n")
    assert several(tmp_path, (None, "{timeout: 1h}"), mandatory=[root]).box.timeout == 300.0
    with pytest.raises(RuleFileError, match=r"`/x` is not in the `write` of `.*root.yaml`, a layer"):
        several(tmp_path, (None, "{write: /x}"), mandatory=[root])


def test_sandbox_settings_belong_to_one_top_level_file(tmp_path):
    (told,) = objections(tmp_path, (None, "{timeout: 1h}"), (None, "{read: [/a]}"))
    assert told == "u1.yaml:2:17: `sandbox` is in `u0.yaml` already: only one file may have it, and files with `layer`"
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text("version: 1\nsandbox: {timeout: 1h}\n")
    outer.write_text("version: 1\ninclude: [{file: inner.yaml}]\n")
    with pytest.raises(RuleFileError, match=r"inner\.yaml:2:10: an included file may not have `sandbox`"):
        read([outer])
    inner.write_text(
        "version: 1\ncommands: [{id: c, run: x, action: deny}]\nrules: [{id: r, to: a.test, action: deny}]\n"
    )
    outer.write_text("version: 1\ninclude: [{file: inner.yaml, only: r}]\n")
    assert [command.cite for command in read([outer]).policy.commands] == ["inner:c"], "commands only hold back"


def test_changed_sandbox_settings_change_the_revision():
    plain = policy("version: 1\nname: t").revision
    assert policy("version: 1\nname: t\nsandbox: {}").revision == plain
    said = [
        "sandbox: {timeout: 1h}", "sandbox: {timeout: 2h}", "sandbox: {read: /a}", "sandbox: {write: /a}", "layer: mandatory\nsandbox: {read: /a}",
        "sandbox: {approval: {by: a}}", "sandbox: {approval: {by: a, count: 2}}", "sandbox: {approval: {by: b}}",
        "layer: mandatory\nsandbox: {timeout: 1h}", "commands: [{id: c, run: x, action: deny}]", "commands: [{id: c, run: x, action: flag}]",
        "commands: [{id: c, run: y, action: deny}]", "commands: [{id: c, run: x, action: deny, for: {tasks: a}}]",
    ]  # fmt: skip
    revisions = [policy(f"version: 1\nname: t\n{text}").revision for text in said]
    assert len({plain, *revisions}) == len(said) + 1
    same = [f"version: 1\nname: t\nsandbox: {{read: {text}}}" for text in ("[/b, /a]", "[/a/, /b, /a]")]
    assert len({policy(text).revision for text in same}) == 1
    why = "version: 1\nname: t\ncommands: [{id: c, run: x, action: deny, why: no}]"
    assert policy(why).revision == policy(why.replace("no}", "never}")).revision


def test_diff_reports_changed_sandbox_settings(tmp_path):
    old = policy("version: 1\nname: t\nsandbox: {read: /a, timeout: 1h}\ncommands: [{id: c, run: x, action: deny}, {id: d, run: y, action: ask}]")  # fmt: skip
    new = policy("version: 1\nname: t\nsandbox: {read: [/a, /b], environment: {set: {A: '1'}}}\ncommands: [{id: c, run: x, action: flag, for: {tasks: m}}]")  # fmt: skip
    assert [tuple(setting) for setting in compare(old, new).settings] == [
        ("sandbox read", "/a", "/a, /b"),
        ("sandbox set", None, "A: 1"),
        ("sandbox timeout", "3600.0", None),
        ("command t:c", "deny x", "flag x for tasks m"),
        ("command t:d", "ask y", None),
    ]
    assert compare(old, old).is_empty
    (setting,) = compare(old, policy("version: 1\nname: t\nsandbox: {read: /a, timeout: 1h, approval: {by: a}}\ncommands: [{id: c, run: x, action: deny}, {id: d, run: y, action: ask}]")).settings  # fmt: skip
    assert tuple(setting) == ("sandbox approval", None, "t:sandbox.approval wants 1 of a, held 120s, open 86400s")
    floors = [
        several(tmp_path, ("mandatory", said), (None, "{timeout: 5m}")) for said in ("{timeout: 1h}", "{timeout: 2h}")
    ]
    assert [tuple(setting) for setting in compare(*floors).settings] == [
        ("layers' sandbox timeout", "3600.0", "7200.0")
    ]
