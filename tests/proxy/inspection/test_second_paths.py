"""Requests that name another path beside that of their request line, which the rules are asked about as well."""

import pytest

from tests.proxy.inspection.inspection_clients import until
from tests.proxy.inspection.inspection_harness import site

RULES = """[
  {id: all, to: good.example, resolves_to: [127.0.0.0/8], ports: [PORT/http], action: allow, http: {paths: ["/**"]}},
  {id: private, to: good.example, ports: [PORT/http], action: deny, http: {paths: ["/private/**"]}},
  {id: seen, to: good.example, ports: [PORT/http], action: flag, http: {paths: ["/echo3"]}},
  {id: people, to: good.example, ports: [PORT/http], action: ask, http: {paths: ["/asked/**"]}},
]"""
PASSED, DENIED, UNREADABLE = "passed rule t:all", "blocked rule t:private", "blocked ambiguous_request"
ELSEWHERE = "blocked name_mismatch"
# A request line, its Destination, and what is decided
CASES = {
    "a path": ("MOVE /echo", "/echo2", PASSED),
    "a URL": ("COPY /echo", "http://HOST/echo2", PASSED),
    "a URL in another case": ("COPY /echo", "HTTP://HOST/echo2?x=y", PASSED),
    "no Destination": ("MOVE /echo", None, PASSED),
    "a method that has none": ("PUT /echo", "/private/x", PASSED),
    "a path that is denied": ("MOVE /echo", "/private/x", DENIED),
    "a URL that is denied": ("COPY /echo", "http://HOST/private/x", DENIED),
    "... with an escape": ("COPY /echo", "http://HOST/%70rivate/x", DENIED),
    "... in another case": ("COPY /echo", "/Private/x", DENIED),
    "... and the path is, too": ("COPY /private/a", "/private/x", DENIED),
    "the path alone is": ("COPY /private/a", "/echo", DENIED),
    "a path that climbs": ("COPY /echo", "/echo/../private/x", "blocked ambiguous_path"),
    "another host": ("COPY /echo", "http://evil.example/echo", ELSEWHERE),
    "another port": ("COPY /echo", "http://good.example:1/echo", ELSEWHERE),
    "another scheme": ("COPY /echo", "https://HOST/echo", ELSEWHERE),
    "another host without a scheme": ("COPY /echo", "//evil.example/echo", UNREADABLE),
    "a user": ("COPY /echo", "http://HOST@evil.example/echo", UNREADABLE),
    "another scheme altogether": ("COPY /echo", "ftp://HOST/echo", UNREADABLE),
    "a fragment": ("COPY /echo", "/echo#/private", UNREADABLE),
    "a list": ("COPY /echo", "/echo2, /private/x", UNREADABLE),
    "two": ("COPY /echo", "/echo2\nDestination: /private/x", UNREADABLE),
    "nothing": ("COPY /echo", "", UNREADABLE),
    "a path that is flagged": ("COPY /echo", "/echo3", "passed rule t:seen"),
    "what people are asked about": ("COPY /echo", "/asked/x", UNREADABLE),
    "from what people are asked about": ("COPY /asked/x", "/echo", UNREADABLE),
    "... to what is denied": ("COPY /asked/x", "/private/x", DENIED),
}


@pytest.mark.parametrize(("line", "destination", "told"), CASES.values(), ids=CASES)
def test_both_paths_are_decided(gate, origins, line, destination, told):
    origin = origins.web("good.example", tls=False)
    place = site(gate, origin, tls=False)
    gate.rules(RULES.replace("PORT", str(place.port)))
    field = "" if destination is None else f"Destination: {destination}\n"
    with place.connect() as connection:
        head = f"{line} HTTP/1.1\nHost: HOST\nConnection: close\n{field}\n"
        connection.sendall(head.replace("HOST", place.host).replace("\n", "\r\n").encode())
        until(connection, b"\r\n\r\n")
    [event] = gate.events("request.decided")
    assert " ".join([event["outcome"], event["reason"], *event.get("rules", [])]) == told
    assert len(origin.requests) == told.startswith("passed")
