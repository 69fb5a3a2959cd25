"""Questions and messages with something in every field."""

from proxy.approvals.approval_request import ApprovalRequest, File, Kind, Program, Ref, Rule, Source, Terms
from rules.decision import ApprovalTerms, GrantScope, RequiredApproval


def terms_of(*given, **named):
    """An `approval:` of a rule file, as a message."""
    return Terms(*ApprovalTerms(*given, **named))


EVENT = "01a1fbac-5503-7e75-bce9-8bc86d516a2a"
ASKS = Rule.of(
    RequiredApproval(
        "web:main-needs-two", "d1" * 32, ApprovalTerms("release", 2, False, 60.0, 3600.0, GrantScope.ATTEMPT), "why not"
    )
)
HOURLY = Rule.of(
    RequiredApproval("web:db", "d2" * 32, ApprovalTerms(covers=GrantScope.DESTINATION, lasts=3600.0, by_self=True))
)
ANYONE = Rule.of(RequiredApproval("web:ask", "d3" * 32, ApprovalTerms(by_self=True)))
SOURCE = Source("web:issues", "https://forge.example/issues", EVENT)
PROGRAM = Program(7, "/usr/bin/git", ("git", "push"), ("/bin/sh", "/sbin/init"))

REQUEST = ApprovalRequest(
    Kind.REQUEST, "tls", "api.example", 443, "POST", "/repos?draft=\udcff", 12, rules=(ANYONE,), revision="r1"
)
PUSH = ApprovalRequest(
    Kind.PUSH,
    "tls",
    "git.example",
    443,
    "POST",
    "/acme/web.git/git-receive-pack",
    repo="acme/web",
    refs=(Ref("refs/heads/main", "update", "a" * 40, "b" * 40), Ref("refs/tags/v1", "create", "0" * 40, "c" * 40)),
    process=PROGRAM,
    rules=(ASKS,),
    revision="r1",
    event=EVENT,
    tainted_by=(SOURCE,),
)
CONNECTION = ApprovalRequest(Kind.CONNECTION, "tcp", "db.example", 5432, rules=(HOURLY,))
COMMAND = ApprovalRequest(Kind.COMMAND, argv=("terraform", "apply", "-auto-approve"), rules=(ANYONE,))
MERGE = ApprovalRequest(
    Kind.MERGE,
    files=(
        File(".ci/run", "f" * 64, "changed", "file 0644, 12 bytes", "file 0755, 20 bytes", 3, 1),
        File("Makefile", "", "deleted", "link to /etc/Makefile"),
    ),
    total=2,
    digest="e" * 64,
    rules=(ANYONE,),
)
EACH = (REQUEST, PUSH, CONNECTION, COMMAND, MERGE)
