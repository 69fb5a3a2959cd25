"""Which requests are git's, and every way to ask for the same that is refused."""

import pytest

from proxy.inspection.stages.git import git_request
from proxy.request.request_head import UnclearError
from rules.attempt import GitRequest, GitService
from rules.verdicts import Reason

FETCH, PUSH = GitService.FETCH, GitService.PUSH
RECEIVE, UPLOAD = ("application/x-git-receive-pack-request",), ("application/x-git-upload-pack-request",)
WEB = "acme/web"
OBJECT = "objects/ab/" + "c" * 38

GITS = [
    ("GET", "/acme/web.git/info/refs?service=git-upload-pack", (), FETCH),
    ("GET", "/acme/web/info/refs?service=git-upload-pack", (), FETCH),
    ("GET", "/acme/web.git/info/refs?service=git-receive-pack", (), PUSH),
    ("GET", "/acme%2Fweb.git/info/refs?service=git-receive-pack", (), PUSH),
    ("HEAD", "/acme/web.git/info/refs?service=git-receive-pack", (), PUSH),
    ("GET", "/acme/web.git/info/refs?service=git-upload-archive", (), FETCH),
    ("POST", "/acme/web.git/git-upload-pack", UPLOAD, FETCH),
    ("POST", "/acme/web/git-receive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git-receive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git-receive-pack/", RECEIVE, PUSH),
    ("POST", "/acme/web.git/%67it-receive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git%2Dreceive-pack", RECEIVE, PUSH),
    ("POST", "/acme/web.git/git-upload-archive", ("application/x-git-upload-archive-request",), FETCH),
    # the dumb protocol reads files
    ("GET", "/acme/web.git/info/refs", (), FETCH),
    ("GET", "/acme/web.git/HEAD", (), FETCH),
    ("GET", f"/acme/web.git/{OBJECT}", (), FETCH),
    ("GET", f"/acme/web/{OBJECT}", (), FETCH),
    ("GET", "/acme/web.git/objects/info/packs", (), FETCH),
    ("GET", "/acme/web.git/objects/pack/pack-ab.idx", (), FETCH),
]


@pytest.mark.parametrize(("method", "target", "kinds", "service"), GITS)
def test_git(method, target, kinds, service):
    assert git_request(method, target, kinds) == GitRequest(service, WEB)


PLAIN = [
    ("GET", "/", ()),
    ("GET", "/acme/web", ()),
    ("GET", "/docs/git-receive-pack", ()),
    ("GET", "/docs/git-receive-pack/index.html", ()),
    ("GET", "/acme/web/blob/HEAD", ()),
    ("GET", "/acme/web/objects/12", ()),
    ("GET", f"/acme/web.git/{OBJECT}?a=b", ()),
    ("POST", "/acme/web.git/info/lfs/objects/batch", ("application/vnd.git-lfs+json",)),
    ("PUT", "/acme/web.git/info/lfs/objects/" + "a" * 64, ("application/octet-stream",)),
    ("POST", "/api/v3/repos/acme/web/git/refs", ("application/json",)),
    ("DELETE", "/repos/acme/web/git/refs/heads/x", ()),
    ("GET", "/acme/../web.git/info/refs", ()),  # which the rules themselves refuse
    ("POST", "/acme/web.git/git-receive-pack%00", RECEIVE),
]


@pytest.mark.parametrize(("method", "target", "kinds"), PLAIN)
def test_not_git(method, target, kinds):
    assert git_request(method, target, kinds) is None


PATH, REQUEST = Reason.AMBIGUOUS_PATH, Reason.AMBIGUOUS_REQUEST
REFUSED = [
    # two readings
    ("POST", "/acme/web.git/./git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.git//git-receive-pack", RECEIVE, PATH),
    ("POST", "//acme/web.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.git/git-receive-pack;x=1", RECEIVE, PATH),
    ("POST", "/acme/web.git/%2567it-receive-pack", RECEIVE, PATH),
    ("GET", "/acme/web.git;x/info/refs?service=git-upload-pack", (), PATH),
    ("GET", "/acme/./web.git/info/refs?service=git-receive-pack", (), PATH),
    # a server that reads the decoded path again cuts it there
    ("POST", "/acme/web.git/git-receive-pack%3Fx", RECEIVE, PATH),
    ("POST", "/acme/web.git/git-receive-pack%3Fx", (), PATH),
    ("POST", "/acme/web.git/git-receive-pack%23", (), PATH),
    ("POST", "/acme/web.git/git-receive-pack%253Fx/y", (), PATH),
    ("GET", "/acme/web.git/info/refs%3Fservice=git-receive-pack", (), PATH),
    ("PUT", "/acme/web.git/refs/heads/main%23x", (), REQUEST),
    # no one repository
    ("POST", "/git-receive-pack", RECEIVE, PATH),
    ("POST", "/.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.git.git/git-receive-pack", RECEIVE, PATH),
    ("POST", "/acme/web.GIT/git-receive-pack", RECEIVE, PATH),
    ("GET", "/info/refs?service=git-receive-pack", (), PATH),
    # other spellings and places of a service's name
    ("POST", "/acme/web.git/GIT-RECEIVE-PACK", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack.", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack%20", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack/x", RECEIVE, REQUEST),
    # methods and queries
    ("PUT", "/acme/web.git/git-receive-pack", RECEIVE, REQUEST),
    ("post", "/acme/web.git/git-receive-pack", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack?x=1", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack?", RECEIVE, REQUEST),
    ("POST", "/acme/web.git/info/refs?service=git-receive-pack", RECEIVE, REQUEST),
    ("GET", "/acme/web.git/info/refs?service=git-upload-pack&service=git-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?service=git-receive-pack&x=1", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?x=1&service=git-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?service=%67it-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?Service=git-receive-pack", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?service=git-other", (), REQUEST),
    ("GET", "/acme/web.git/info/refs?", (), REQUEST),
    # types
    ("POST", "/acme/web.git/git-receive-pack", (), REQUEST),
    ("POST", "/acme/web.git/git-receive-pack", UPLOAD, REQUEST),
    ("POST", "/acme/web.git/git-receive-pack", ("text/plain",), REQUEST),
    ("POST", "/acme/web.git/git-receive-pack", (*RECEIVE, *RECEIVE), REQUEST),
    ("POST", "/acme/web.git/push", RECEIVE, REQUEST),
    # WebDAV
    ("PUT", "/acme/web.git/refs/heads/main", (), REQUEST),
    ("PUT", "/acme/web/refs/heads/main", (), REQUEST),
    ("MKCOL", "/acme/web.git/refs/heads/", (), REQUEST),
    ("LOCK", "/acme/web.git/refs/heads/main", (), REQUEST),
    ("LOCK", "/acme/web/info/refs", (), REQUEST),
    ("MOVE", f"/acme/web.git/{OBJECT}_opaquelocktoken", (), REQUEST),
    ("PUT", f"/acme/web/{OBJECT}_opaquelocktoken", (), REQUEST),
    ("PROPFIND", "/acme/web.git/refs/", (), REQUEST),
    ("DELETE", "/acme/web.git/refs/heads/main", (), REQUEST),
    ("PUT", "/acme/web.git/packed-refs", (), REQUEST),
    ("PUT", "/acme/web.git/config", (), REQUEST),
]


@pytest.mark.parametrize(("method", "target", "kinds", "reason"), REFUSED)
def test_refused(method, target, kinds, reason):
    with pytest.raises(UnclearError) as raised:
        git_request(method, target, kinds)
    assert raised.value.reason is reason
