"""Headless Chromium as it is: a page, what its script fetches, and a page that is refused."""

from . import program

PAGE = """<title>t</title><p id=x>plain</p><script>
fetch("/echo").then((r) => r.json()).then((j) => { document.getElementById("x").textContent = `got ${j.method} ${j.version}` })
</script>"""


def browse(url):
    """In a sandbox there is no user namespace to be had for Chromium's own: it goes without."""
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --virtual-time-budget=3000 --dump-dom"
    return [
        "sh",
        "-c",
        f'exec timeout 50 "$1" --user-data-dir="$PWD/profile" {flags} "$2"',
        "sh",
        program("chromium"),
        url,
    ]


def test_chromium(world):
    (world.files / "page.html").write_text(PAGE)
    tried = world.run(browse("https://www.open.example/files/page.html"), browse("https://www.denied.example/"))
    page, denied = tried.said
    assert '<p id="x">got GET 2</p>' in page.out, page.err
    assert "no rule allows this" in denied.out, denied
    opened = [
        event["http"]["path"]
        for event in tried.journal.of(kind="request.decided", outcome="passed")
        if event["http"]["host"] == "www.open.example"
    ]
    assert opened[:2] == ["/files/page.html", "/echo"]
