"""Container registries: what Docker's daemon is told to pull through, and where a registry gives out tokens.

Docker keeps the name of its default registry in its binary, and no client has one for another company's: whoever locks
says them, as in `exeat presets lock ghcr=https://HOST`. Layers are taken to lie on the registry itself; where a pull is
sent elsewhere, the refusal names the host, and it is locked as `ghcr.layers=https://HOST`.
"""

import re
from collections.abc import Iterator
from typing import Final

from enforcer.presets.client import Client, Learnt, Setting, inside, settings_of
from enforcer.presets.fetch import FetchError, Web
from enforcer.presets.machine import Machine
from proxy.wire import strict_json
from rules.loading.preset_locks import Locked, Origin


def _docker(machine: Machine) -> Iterator[Setting]:
    file = machine.system("etc/docker/daemon.json")
    text = machine.text(file)
    try:
        mirrors = strict_json.loads(text)["registry-mirrors"] if text else []
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if isinstance(mirrors, list):
        yield from settings_of("registry", map(str, mirrors), f"registry-mirrors in {file}", machine)


def _nothing(_machine: Machine) -> tuple[Setting, ...]:
    return ()


def _learn(web: Web, registry: Locked) -> list[Learnt]:
    """See where tokens are given out (OCI distribution specification; RFC 6750)."""
    answer = web.get(f"{registry.origin.url}/v2/", "application/json", inside=inside(registry))
    layers = Learnt("layers", registry.origin, "the registry itself, until a pull is sent elsewhere")
    if answer.status == 200:
        return [Learnt("token", registry.origin, "needs no token"), layers]
    match = re.search(r'realm="(https?://[^"\s?]+)"', answer.headers.get("www-authenticate", ""))
    if answer.status != 401 or match is None:
        raise FetchError(f"{registry.origin.url} doesn't answer as a container registry does (status {answer.status})")
    try:
        realm = Origin.parse(match[1])
    except ValueError as error:
        raise FetchError(f"{registry.origin.url} gives out tokens where nothing can be locked: {error}") from error
    if registry.origin.scheme == "https" and realm.scheme != "https":
        raise FetchError(f"{registry.origin.url} gives out tokens at {realm.url}, which is not https")
    return [Learnt("token", realm, f"where {registry.origin.url} says that tokens are given out"), layers]


CLIENTS: Final = (
    Client("docker-hub", ("registry", "token", "layers"), _docker, _learn),
    Client("ghcr", ("registry", "token", "layers"), _nothing, _learn),
)
