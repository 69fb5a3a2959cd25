"""Attempts in the words of clients, as `exeat explain` takes them."""

import pytest

from enforcer.cli.client_commands import read_attempt

COMMANDS = [
    ("curl https://x.example/a?b=c", "GET https://x.example/a?b=c"),
    ("/usr/bin/curl -sSL https://x.example/", "GET https://x.example/"),
    ("curl -X DELETE https://x.example/a", "DELETE https://x.example/a"),
    ("curl -XPUT https://x.example/a", "PUT https://x.example/a"),
    ("curl --request=PATCH https://x.example/a", "PATCH https://x.example/a"),
    ("curl -d a=b https://x.example/a", "POST https://x.example/a"),
    ("curl --data-urlencode 'a=b c' https://x.example/a", "POST https://x.example/a"),
    ("curl --json '{}' -X PUT https://x.example/a", "PUT https://x.example/a"),
    ("curl -T file https://x.example/a", "PUT https://x.example/a"),
    ("curl -I https://x.example/a", "HEAD https://x.example/a"),
    ("curl -O https://x.example/a", "GET https://x.example/a"),
    ("curl -o https://out.example https://x.example/a", "GET https://x.example/a"),
    ("curl -H 'Accept: text/html' 'https://x.example/a'", "GET https://x.example/a"),
    ("curl -x http://proxy.example:1 https://x.example/a", "GET https://x.example/a"),
    ("curl --proxy http://proxy.example:1 https://x.example/a", "GET https://x.example/a"),
    ("curl -e https://from.example https://x.example/a", "GET https://x.example/a"),
    ("curl -sSX POST https://x.example/a", "POST https://x.example/a"),
    ("curl -sd a=b https://x.example/a", "POST https://x.example/a"),
    ("curl -sXPUT https://x.example/a", "PUT https://x.example/a"),
    ("curl -G -d a=b https://x.example/a", "GET https://x.example/a"),
    ("curl --max-redirs 3 --url https://x.example/a", "GET https://x.example/a"),
    ("wget -T 5 -nv https://x.example/a", "GET https://x.example/a"),
    ("wget -d https://x.example/a", "GET https://x.example/a"),
    ("curl x.example/a", "GET http://x.example/a"),
    ("wget -O - https://x.example/a", "GET https://x.example/a"),
    ("wget --method=PUT https://x.example/a", "PUT https://x.example/a"),
    ("wget --post-data=x https://x.example/a", "POST https://x.example/a"),
    ("git clone --depth 1 https://x.example/a/b.git", "git fetch https://x.example/a/b.git"),
    ("git push https://x.example/a/b refs/heads/main", "git push https://x.example/a/b refs/heads/main"),
    ("$ sudo A=b curl -s https://x.example/a", "GET https://x.example/a"),
    ("time wget https://x.example/a", "GET https://x.example/a"),
    ("git clone git@x.example:a/b.git", "tcp x.example:22"),
    ("git clone ssh://git@x.example:2222/a/b.git", "tcp x.example:2222"),
    ("ssh -i key -p 2222 git@x.example mkdir -p 3", "tcp x.example:2222"),
    ("ssh x.example", "tcp x.example:22"),
    ("ssh", "ssh"),
    ("GET https://x.example/a", "GET https://x.example/a"),
    ("tcp x.example:22", "tcp x.example:22"),
]


@pytest.mark.parametrize(("command", "attempt"), COMMANDS)
def test_client_command_becomes_its_attempt(command, attempt):
    assert read_attempt(command) == attempt


@pytest.mark.parametrize("command", ["curl", "curl -s", "curl 'https://x.example"])
def test_client_command_without_a_url_is_an_error(command):
    with pytest.raises(ValueError, match=r"no URL|No closing quotation"):
        read_attempt(command)
