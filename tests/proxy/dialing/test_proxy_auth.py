"""The file that holds what the proxy is told: which is taken, which refused, and that nothing shows what is in it."""

import io
import os
import pickle

import pytest

from proxy.dialing import proxy_auth
from proxy.dialing.proxy_auth import Login, LoginError
from tests.support import harness

GOOD = [
    ("a line", b"me:geheim\n", Login(b"me", b"geheim")),
    ("no end of line", b"me:geheim", Login(b"me", b"geheim")),
    ("written elsewhere", b"me:geheim\r\n", Login(b"me", b"geheim")),
    ("colons and spaces in the password", b"me: ge:heim \n", Login(b"me", b" ge:heim ")),
    ("UTF-8", "mü:schlüssel\n".encode(), Login("mü".encode(), "schlüssel".encode())),
    ("the longest", b"u" * 255 + b":" + b"p" * 255 + b"\n", Login(b"u" * 255, b"p" * 255)),
]


@pytest.mark.parametrize(("data", "login"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_login_file_is_read(data, login, tmp_path):
    path = tmp_path / "auth"
    path.write_bytes(data)
    path.chmod(0o600)
    assert proxy_auth.read(path) == login


WRONG = [
    ("nothing", b"", "must hold one line, `user:password`"),
    ("no colon", b"geheim\n", "must hold one line, `user:password`"),
    ("no user", b":geheim\n", "must hold one line, `user:password`"),
    ("no password", b"me:\n", "must hold one line, `user:password`"),
    ("two lines", b"me:geheim\nyou:geheim\n", "without control characters"),
    ("a carriage return inside", b"me:ge\rheim\n", "without control characters"),
    ("NUL", b"me:ge\0heim\n", "without control characters"),
    ("DEL", b"me:ge\x7fheim\n", "without control characters"),
    ("a user that is too long", b"u" * 256 + b":geheim", "more than 255 bytes"),
    ("a password that is too long", b"me:" + b"geheim" * 50, "more than 255 bytes"),
    ("a large file", b"me:" + b"geheim" * 100_000, "more than 255 bytes"),
]


@pytest.mark.parametrize(("data", "why"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_malformed_login_is_refused_without_its_text(data, why, tmp_path):
    path = tmp_path / "auth"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(LoginError, match=why) as error:
        proxy_auth.read(path)
    assert "heim" not in str(error.value)


def _link(path):
    path.with_name("real").write_bytes(b"me:geheim")
    path.symlink_to("real")


def _twice(path):
    path.write_bytes(b"me:geheim")
    path.chmod(0o600)
    os.link(path, path.with_name("again"))


def _mode(mode):
    def make(path):
        path.write_bytes(b"me:geheim")
        path.chmod(mode)

    return make


def _anothers(path):
    path.write_bytes(b"me:geheim")
    path.chmod(0o600)
    harness.give_away(path)


PLACES = [
    ("not there", lambda _: None, "can't be read: no such file"),
    ("a symbolic link", _link, "can't be read: too many levels of symbolic links"),
    ("a directory", lambda path: path.mkdir(), "is not a plain file"),
    ("a FIFO", os.mkfifo, "is not a plain file"),
    ("readable by its group", _mode(0o640), "is open to others"),
    ("readable by everybody", _mode(0o604), "is open to others"),
    ("writable by others", _mode(0o602), "is open to others"),
    ("with a second name", _twice, "has other names"),
    ("somebody else's", _anothers, f"belongs to uid {harness.UID}"),
]


@pytest.mark.parametrize(("name", "make", "why"), PLACES)
def test_login_file_readable_by_others_is_refused(name, make, why, tmp_path):
    path = tmp_path / "auth"
    make(path)
    with pytest.raises(LoginError, match=why) as error:
        proxy_auth.read(path)
    assert "heim" not in str(error.value), name


def test_login_is_never_shown():
    login = Login(b"me", b"geheim")
    shown = [repr(login), str(login), f"{login}", repr([login]), repr(KeyError(login))]
    assert not [text for text in shown if "heim" in text or "me'" in text]
    with pytest.raises(TypeError):
        pickle.dumps(login)


@pytest.mark.parametrize("login", [None, Login(b"u", b"p"), Login(b"u" * 255, b"p" * 255)])
def test_login_is_sent_and_read_without_later_bytes(login):
    file = io.BytesIO()
    proxy_auth.send(login, file)
    file.write(b"rest")
    file.seek(0)
    assert proxy_auth.take(file) == login
    assert file.read() == b"rest"


def test_incomplete_login_is_an_error():
    file = io.BytesIO()
    proxy_auth.send(Login(b"user", b"password"), file)
    for size in range(len(file.getvalue())):
        with pytest.raises(ValueError, match="incomplete"):
            proxy_auth.take(io.BytesIO(file.getvalue()[:size]))
