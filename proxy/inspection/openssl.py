"""What pyOpenSSL binds of OpenSSL and gives no name to: `test_mitmproxy_contract.py` holds it to that."""

from typing import Any, Final

from OpenSSL import SSL

LIB: Final[Any] = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001  no public name: see above
FFI: Final[Any] = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001  no public name: see above
