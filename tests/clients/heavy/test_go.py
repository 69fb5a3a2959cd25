"""Go: a program with net/http, and the go command against a module proxy of our own."""

import io
import json
import subprocess
import zipfile

import pytest

from . import HOME, asked, program

URL = "https://www.open.example"
PROGRAM = """
package main

import ("encoding/json"; "fmt"; "io"; "net/http"; "os"; "strings")

func main() {
	for _, url := range os.Args[1:] {
		answer, err := http.Get(url)
		if err != nil { fmt.Println(err); continue }
		body, _ := io.ReadAll(answer.Body)
		shown, _ := json.Marshal([]any{answer.Status, answer.Proto, answer.Header.Get("X-Exeat-Decision"), len(body)})
		fmt.Println(string(shown))
	}
	answer, err := http.Post(os.Args[1] + "/../upload", "text/plain", io.LimitReader(strings.NewReader(strings.Repeat("x", 5000000)), 4000000))
	if err != nil { fmt.Println(err); return }
	body, _ := io.ReadAll(answer.Body)
	fmt.Print(string(body))
	for _, url := range []string{"https://read.example/up", "http://read.example/up"} {
		answer, err = http.Post(url, "text/plain", strings.NewReader(strings.Repeat("x", 24 << 20)))
		if err != nil { fmt.Println(err); return }
		fmt.Println(answer.StatusCode)
	}
}
"""
MODULE = "lab.example/lefty"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(PROGRAM.replace('os.Args[1] + "/../upload"', f'"{URL}/upload"'))
    environment = {
        "HOME": str(directory),
        "PATH": "/usr/bin:/bin",
        "GOFLAGS": "-mod=mod",
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
    }
    subprocess.run([program("go"), "build", "-o", "main", "main.go"], cwd=directory, check=True, env=environment)
    return (directory / "main").read_bytes()


def test_net_http(world, built):
    urls = f"{URL}/bytes/3000000 {URL.replace('https', 'http')}/bytes/7 https://www.denied.example/x"
    tried = world.run(["sh", "-c", f"chmod 755 main; ./main {urls}"], files={"main": built})
    [said] = tried.said
    https, http, denied, upload, *refused = map(json.loads, said.out.splitlines())
    assert https == ["200 OK", "HTTP/2.0", "", 3000000]
    assert http[1:] == ["HTTP/1.1", "", 7]
    assert denied[:2] == ["403 Forbidden", "HTTP/2.0"]
    assert denied[2].startswith("deny;reason=no_rule")
    assert upload["size"] == 4000000
    assert refused == [403, 403]


def test_modules(world):
    """The protocol of `go help goproxy`."""
    at = world.files / "go" / MODULE / "@v"
    at.mkdir(parents=True)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{MODULE}@v1.0.0/go.mod", f"module {MODULE}\n")
        archive.writestr(f"{MODULE}@v1.0.0/lefty.go", "package lefty\n")
    files = {
        "list": b"v1.0.0\n",
        "v1.0.0.info": b'{"Version": "v1.0.0"}',
        "v1.0.0.mod": f"module {MODULE}\n".encode(),
        "v1.0.0.zip": content.getvalue(),
    }
    for name, data in files.items():
        (at / name).write_bytes(data)
    get = 'export GOPROXY="$1" GONOSUMDB=* GOSUMDB=off GOFLAGS=-modcacherw GOTOOLCHAIN=local; mkdir "${3##*/}"; cd "${3##*/}"; "$2" mod init m; "$2" get "$3"'
    go = asked(program("go"), "env", "GOROOT") + "/bin/go"
    tried = world.run(
        ["sh", "-c", f"{get} && cat go.mod", "sh", f"{URL}/files/go", go, MODULE],
        ["sh", "-c", get, "sh", "https://www.denied.example/go", go, "lab.example/righty"],
        read=[HOME],
    )
    got, denied = tried.said
    assert got.ok, got.err
    assert f"require {MODULE} v1.0.0" in got.out
    assert "/@v/list: 403 Forbidden" in denied.err
