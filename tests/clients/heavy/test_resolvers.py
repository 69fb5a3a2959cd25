"""Resolvers that bring a DNS of their own: dig, drill, busybox's and Node's, and glibc's over TCP, at the sandbox's server."""

import re

import pytest

from . import program

NAME = "www.open.example"
SYNTHETIC = re.compile(r"\b198\.1[89]\.\d+\.\d+\b")
NODE = """
const { Resolver } = require("node:dns").promises;
const resolver = new Resolver();
(async () => {
  console.log(resolver.getServers().join(), (await resolver.resolve4(NAME)).join());
  for (const kind of ["resolveTxt", "resolveAny", "resolve6"])
    await resolver[kind](NAME).then((found) => console.log(kind, JSON.stringify(found)), (error) => console.log(kind, error.code));
})();
""".replace("NAME", repr(NAME))
OWN = "192.0.0.2"  # as the sandbox's resolv.conf has it


def dig(*words):
    return [program("dig"), "+time=3", "+tries=1", *words]


@pytest.fixture(scope="module")
def tried(world):
    commands = {
        "dig": dig(NAME),
        "dig +tcp": dig("+tcp", NAME),
        "dig +tcp at another server": dig("+tcp", "@8.8.8.8", NAME),
        "dig +tcp at the loopback": dig("+tcp", "@127.0.0.1", NAME),
        "dig +tcp over IPv6": dig("+tcp", "@fd65:7865:6174::2", NAME),
        "dig +tcp +keepopen": dig("+tcp", "+keepopen", NAME, "mail.open.example"),
        "drill": [program("drill"), NAME],
        "drill over TCP": [program("drill"), "-t", NAME],
        "busybox nslookup": [program("busybox"), "nslookup", NAME, OWN],
        "getent over TCP": ["env", "RES_OPTIONS=use-vc", "getent", "ahostsv4", NAME],
        "dig TXT over TCP": dig("+tcp", NAME, "TXT"),
        "dig ANY": dig(NAME, "ANY"),
        "dig AXFR": dig("open.example", "AXFR"),
        "node": [program("node"), "-e", NODE],
    }
    done = world.run(*commands.values())
    return dict(zip(commands, done.said, strict=True)), done.journal


ANSWERED = [
    "dig", "dig +tcp", "dig +tcp at another server", "dig +tcp at the loopback", "dig +tcp over IPv6", "dig +tcp +keepopen",
    "drill", "drill over TCP", "busybox nslookup", "getent over TCP", "node",
]  # fmt: skip


@pytest.mark.parametrize("client", ANSWERED)
def test_resolver_gets_the_synthetic_address(tried, client):
    said = tried[0][client]
    assert said.ok, said
    assert SYNTHETIC.search(said.out), said


@pytest.mark.parametrize("client", ["dig TXT over TCP", "dig ANY", "dig AXFR"])
def test_unsupported_query_over_tcp_gets_an_error_reply(tried, client):
    """Not a refused connection: records of these types aren't given, and the name is there."""
    said = tried[0][client]
    assert "refused" not in said.out + said.err, said
    assert "Transfer failed" in said.out or "status: NOERROR" in said.out, said


def test_each_lookup_over_tcp_is_recorded(tried):
    looked_up = [each for each in tried[1].of(kind="dns.decided") if each["protocol"] == "tcp"]
    assert len(looked_up) >= 9
    assert {each["destination"]["port"] for each in looked_up} == {53}
