"""The site that `make docs` builds: without a warning, each page in it, searchable."""

import os
import subprocess
import sys

import pytest

from tests.support import harness

DOCS = harness.PROJECT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    into = tmp_path_factory.mktemp("site")
    words = [
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "--builder",
        "html",
        "-d",
        into / "read",
        DOCS,
        into / "html",
    ]
    build = [sys.executable, "-m", "sphinx", *words]
    done = subprocess.run(build, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    return into / "html"


def test_site_has_each_page_and_a_link_to_it(site):
    pages = {str(page.relative_to(DOCS).with_suffix(".html")) for page in DOCS.rglob("*.md")}
    assert {str(page.relative_to(site)) for page in site.rglob("*.html")} == pages | {"genindex.html", "search.html"}
    index = (site / "index.html").read_text()
    assert {page for page in pages if f'href="{page}"' not in index} == {"index.html"}


def test_site_is_searchable_and_loads_nothing_foreign(site):
    index = (site / "searchindex.js").read_text()
    assert "worktre" in index  # words are in it by their stems
    assert "pasteboard" not in index
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'src="http' not in text
        assert '<link rel="stylesheet" href="http' not in text
