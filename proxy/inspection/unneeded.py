"""What mitmproxy imports and the gate has no use for is not loaded: QUIC and HTTP/3, and its own option files' YAML.

QUIC is refused before inspection and options are set in code, so all of that would be a fifth of what a worker takes to
begin, and code to trust, for nothing. In its place are modules whose every name is a class without instances: what asks
`isinstance` hears no, and what would use one breaks, and closes the connection with it (invariant 2).
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

LEFT_OUT: Final = frozenset({
    "aioquic", "ruamel", "mitmproxy.proxy.layers.quic",
    "mitmproxy.proxy.layers.http._http3", "mitmproxy.proxy.layers.http._http_h3",
})  # fmt: skip


class _Hollow(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> type:
        """Return a class that there is no instance of."""
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__new__": _none})
        setattr(self, name, made)
        return made


class _Finder:
    """Finds the hollow ones, and whatever is said to be in them: finder and loader (importlib.abc, 7 ms to import)."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """Claim what is left out."""
        parts = fullname.split(".")
        if LEFT_OUT.isdisjoint(".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            return None
        return ModuleSpec(fullname, cast("Loader", self), is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make one."""
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Put nothing in."""


def leave_out() -> None:
    """Load none of it from here on, unless it is there already. For a process that is the gate's alone."""
    if "mitmproxy.proxy.layers" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


def _none(cls: type, *_: object, **__: object) -> object:
    raise RuntimeError(f"`{cls.__name__}` is not part of the gate")
