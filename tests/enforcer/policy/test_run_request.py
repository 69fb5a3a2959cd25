"""The box of one run: rule files, options and layers together, and where the paths really lie."""

import argparse
from types import SimpleNamespace

import pytest

from enforcer.cli import run
from enforcer.cli.parsing import add_arguments
from enforcer.system.errors import UsageError
from rules.loading.load import read
from rules.sandbox import SandboxUser, WorkspaceMode


@pytest.fixture
def box_of(tmp_path):
    def made(words, said="{}", layer=""):
        files = [("u", said), *([("l", layer)] if layer else [])]
        for name, text in files:
            head = "layer: mandatory\n" if name == "l" else ""
            (tmp_path / f"{name}.yaml").write_text(f"version: 1\n{head}sandbox: {text.replace('@', str(tmp_path))}\n")
        parser = argparse.ArgumentParser()
        parser.add_argument("--env", action="append", default=[])
        add_arguments(parser, run.SANDBOX_OPTIONS)
        policy = read([tmp_path / f"{name}.yaml" for name, _ in files]).policy
        return run.choose_settings(parser.parse_args([word.replace("@", str(tmp_path)) for word in words]), policy)

    return made


def test_options_replace_or_extend_file_settings(box_of):
    said = (
        "{timeout: 1h, workspace: direct, hostname: a, hide: [/x], caches: {pip: ~/p}, limits: {memory: 1GB, cpu: 2}}"
    )
    words = [
        "--timeout",
        "2h",
        "--review",
        "--hostname",
        "b",
        "--hide",
        "/y",
        "--hide",
        "**/.env",
        "--cache",
        "npm=~/.npm",
    ]
    more = [
        "--memory",
        "2GB",
        "--processes",
        "9",
        "--files",
        "99",
        "--disk",
        "1GB",
        "--user",
        "root",
        "--protect",
        "*.lock",
    ]
    box, places = box_of([*words, *more], said)
    assert (box.timeout, box.workspace, box.hostname, box.user) == (7200.0, WorkspaceMode.REVIEW, "b", SandboxUser.ROOT)
    assert (box.memory, box.cpu, box.processes, box.files, box.disk) == (2 << 30, 2.0, 9, 99, 1 << 30)
    assert (box.caches, box.protected) == ((("npm", "~/.npm"), ("pip", "~/p")), ("*.lock",))
    assert (places.hide, places.names) == (("/x", "/y"), ((".env",),))
    assert box_of(["--cache", "pip=~/q"], said)[0].caches == (("pip", "~/q"),)
    assert box_of(["--direct"], said)[0].workspace is WorkspaceMode.DIRECT


PAST = [
    (["--timeout", "2h"], "{timeout: 1h}", "--timeout: `.*l.yaml`, a layer, lets a task have no more than 3600"),
    (["--memory", "2GB"], "{limits: {memory: 1GB}}", "--memory: .* no more than"),
    (["--direct"], "{workspace: review}", "--direct: `workspace: direct` is laxer"),
    (["--user", "root"], "{user: task}", "--user: `user: root` is laxer"),
    (["--hostname", "b"], "{hostname: a}", "--hostname: `hostname` is another"),
    (["--cache", "b=~/b"], "{caches: {a: ~/a}}", "--cache: `b: ~/b` is not in the `caches`"),
    (["--env", "TOKEN"], "{environment: {keep: [A_*]}}", "--env: `TOKEN` is not in the `keep`"),
    (["--env", "A=2"], "{environment: {set: {A: 1}}}", "--env: `A` has another value"),
    (["--read", "@"], "{read: []}", "read: `.*` leads to `.*`, not in the `read` of `.*l.yaml`, a layer"),
    (["--write", "@"], "{write: [@/sub]}", "write: `.*` leads to .* not in the `write`"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "layer", "message"), PAST, ids=[" ".join(words) for words, _, _ in PAST])
def test_no_option_loosens_a_layer(box_of, tmp_path, words, layer, message):
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match=message):
        box_of(words, layer=layer)


def test_named_home_loosens_no_layer(box_of, tmp_path, monkeypatch):
    """`HOME=/elsewhere exeat run` showed what root hides, and all that lies elsewhere under the same name."""
    real, said = tmp_path / "real", tmp_path / "said"
    for home in (real, said):
        (home / "src").mkdir(parents=True)
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_dir=str(real)))
    monkeypatch.setenv("HOME", str(said))
    assert box_of([], layer="{hide: [~/.keys, '**/.env']}")[1].hide == (f"{real}/.keys", f"{said}/.keys")
    assert box_of(["--read", str(real / "src")], layer="{read: ~/src}")[1].read == (str(real / "src"),)
    with pytest.raises(UsageError, match="not in the `read` of"):
        box_of(["--read", str(said / "src")], layer="{read: ~/src}")


def test_smaller_limit_than_the_layers_applies(box_of):
    box, _ = box_of(["--timeout", "30m"], "{timeout: 2h}", "{timeout: 1h}")
    assert box.timeout == 1800.0
    assert box_of([], "{timeout: 2h}", "{timeout: 1h}")[0].timeout == 3600.0


def test_link_loosens_no_layer(box_of, tmp_path):
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    allowed.mkdir()
    other.mkdir()
    (allowed / "link").symlink_to(other)
    layer = "{read: [@/allowed]}"
    inside = allowed / "in"
    inside.mkdir()
    assert box_of(["--read", str(inside)], layer=layer)[1].read == (str(allowed.resolve()), str(inside.resolve()))
    with pytest.raises(UsageError, match="leads to"):
        box_of(["--read", str(allowed / "link")], layer=layer)
    with pytest.raises(UsageError, match="leads to"):
        box_of([], "{read: [@/allowed/link]}", layer)


WRONG = [
    (["--timeout", "2"], "--timeout: `2`: a duration is"),
    (["--memory", ""], "--memory has no value"),
    (["--cpu", "x"], "--cpu: `x` is no number of cores"),
    (["--cache", "pip"], "--cache: `pip` is not NAME=PATH"),
    (["--cache", "pip=/etc/x"], "--cache: `/etc/x`: a cache lies below"),
    (["--hide", "**/a/**"], r"--hide: `\*\*/a/\*\*`: `\*\*` stands at the beginning"),
    (["--read", "/no/such"], "read: `/no/such` can't be shown: no such file"),
    (["--write", "/dev/null"], "write: `/dev/null` can.t be given to a task: every task has its own"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_malformed_options_are_refused(box_of, words, message):
    with pytest.raises(UsageError, match=message):
        box_of(words)


def test_tilde_is_the_home_of_the_user(box_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "keys").symlink_to("data")
    _, places = box_of([], "{read: ~/data, hide: ~/keys}")
    real = tmp_path.resolve()
    assert places.read == (f"{real}/data",)
    assert places.hide == (f"{real}/data", f"{tmp_path}/keys"), "a link is hidden by what it leads to"
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UsageError, match="you have no home here"):
        box_of([], "{read: ~/data}")
