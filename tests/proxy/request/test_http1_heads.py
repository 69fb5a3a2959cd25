"""HTTP/1 heads have two readers: the peek that chooses a connection's way, and the strict one for everything else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What a reader of its own needs: a start line's pattern, the lines of a head, or a library's parser
READS = re.compile(
    r"""re\.compile\(\s*r?b?["'][^"\n]*HTTP/
    |   (?<!version\.starts)with\(\(?r?b?["']\ ?HTTP/
    |   (?:split|partition)\(\s*b?["']\\r\\n["']
    |   readline\(\)[^\n]*\\r\\n
    |   h11\.(?:Connection|Request|Response)\b
    |   \bhttp\.server\b | BaseHTTPRequestHandler | aiohttp | parse_headers | read_(?:request|response)_head | email\.parser
    """,
    re.VERBOSE,
)


def test_no_other_module_parses_http1_heads():
    code = [file for floor in ("rules", "proxy", "enforcer") for file in (ROOT / floor).rglob("*.py")]
    readers = {str(file.relative_to(ROOT)) for file in code if READS.search(file.read_text())}
    assert readers == {"proxy/gate/client_hello.py", "proxy/request/http1_heads.py"}


@pytest.mark.parametrize(
    "line",
    [
        r'_LINE: Final = re.compile(rb"([A-Z]{3,7}) (/[!-~]{0,4095}) HTTP/1\.[01]")',
        r'request_line = head.partition(b"\r\n")[0].split(b" ")',
        r'line, *lines = bytes(data[:size]).split(b"\r\n")',
        r'if not request_line[2].startswith(b"HTTP/1."):',
        "reader = h11.Connection(h11.SERVER)",
        "from http.server import BaseHTTPRequestHandler",
    ],
)
def test_second_parser_of_heads_is_found(line):
    assert READS.search(line)


def test_parsing_heads_imports_no_library():
    """The gate and the scrape server read some, where nothing is inspected."""
    code = (
        "import sys, proxy.request.http1_heads; print(sorted({'mitmproxy', 'h11', 'h2', 'asyncio'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
