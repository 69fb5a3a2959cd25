"""Plain HTTP requests through an upstream HTTP proxy: the head sent to it, and the response for the client.

Such a request has an absolute target (RFC 9112 section 3.2.2). A CONNECT would do, but many proxies allow that to port
443 alone. The proxy receives a copy: it names the origin that was decided on, whatever the client wrote, and it alone
has the login at the proxy. Header fields between us and the proxy reach neither end.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from proxy.dialing.tunnel import credentials, proxy_login_problem
from proxy.request.request_head import Head
from rules.attempt import Protocol
from rules.settings import ProxyDestination, Scheme

if TYPE_CHECKING:
    from proxy.dialing.connect_race import Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.inspection.stages.request_context import RequestDecision
    from proxy.request.messages import ResponseHead, WebOrigin

# What is said between a client and a proxy: RFC 9110 sections 7.6.1 and 11.7
_PROXYS: Final = frozenset(
    {b"proxy-authorization", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-connection"}
)
# What marks an error page as the proxy's own. Some quote the request that failed, the password with it (CVE-2025-62168)
_OWN_PAGES: Final = frozenset({b"x-squid-error", b"proxy-status"})
_ECHOED: Final = b"TRACE"  # what the last one on the way does with the whole head: the password would be in it


def route_through_proxy(
    found: "tuple[Hop, ...]", head: "Head", request_decision: "RequestDecision"
) -> "tuple[Hop, ...]":
    """Return where a request goes: in the clear, by way of an HTTP proxy, through no connection of its own.

    What switches protocols needs one, and so does what a proxy might answer by itself (RFC 9110 section 7.6.2).
    """
    if (
        not found
        or not isinstance(found[0], ProxyDestination)
        or request_decision.resource is None
        or request_decision.attempt is None
    ):
        return found
    clear = request_decision.attempt.protocol is Protocol.HTTP and found[0].upstream.scheme is Scheme.HTTP
    ends_there = head.method == _ECHOED or any(name.lower() == b"max-forwards" for name, _ in head.fields)
    return (found[0]._replace(relayed=clear and not request_decision.resource.websocket and not ends_there),)


def request_to_proxy(head: Head, origin: "WebOrigin", login: "Login | None") -> Head:
    """Return the head to send to the proxy, with our `login`."""
    fields = tuple(
        (name, origin.authority if name.lower() == b"host" else value)  # as in the target (RFC 9112 section 3.2.2)
        for name, value in head.fields
        if name.lower() not in _PROXYS
    )
    if login is not None:
        fields = (*fields, (b"Proxy-Authorization", credentials(login)))
    path = b"" if head.path == b"*" else head.path  # RFC 9112 section 3.2.4: the last proxy makes an asterisk of it
    return Head(head.version, head.method, b"http", origin.authority, path, fields)


def response_from_proxy(response: "ResponseHead", proxy: "Hop | None", login: "Login | None") -> "ResponseHead | str":
    """Take out of a response what is the proxy's; a str says why it is none for a client, who can't log in there."""
    if response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return f"the proxy `{proxy}`: {proxy_login_problem(login)}"
    if login is not None and any(name.lower() in _OWN_PAGES for name, _ in response.fields):
        return f"the proxy `{proxy}`: it answered {response.status} itself"
    return response._replace(fields=tuple(field for field in response.fields if field[0].lower() not in _PROXYS))
