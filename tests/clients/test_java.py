"""Java's HttpClient, which offers HTTP/2 wherever it goes: over TLS, and in the clear as an upgrade."""

import hashlib
import json
import shutil
import subprocess

import pytest

from tests.support import harness

PROGRAM = """
import java.net.URI;
import java.net.http.*;
import java.security.MessageDigest;
import java.util.HexFormat;
public class Ask {
  public static void main(String[] urls) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (String url : urls) {
      HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url));
      if (url.contains("/up")) request.POST(HttpRequest.BodyPublishers.ofByteArray(new byte[3000000]));
      HttpResponse<byte[]> answer = client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
      String told = answer.headers().firstValue("X-Exeat-Decision").orElse("").split(";event")[0];
      String sum = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(answer.body()));
      System.out.println(answer.statusCode() + " " + answer.version() + " " + sum + " " + told);
      if (url.endsWith("/upload")) System.out.print(new String(answer.body()));
    }
  }
}
"""
CONTENT = bytes(range(241)) * 9000


@pytest.fixture(scope="module")
def compiled(world, tmp_path_factory):
    (world.files / "java.bin").write_bytes(CONTENT)
    for tool in ("java", "javac"):
        if shutil.which(tool) is None:
            harness.missing(tool)
    directory = tmp_path_factory.mktemp("java")
    (directory / "Ask.java").write_text(PROGRAM)
    subprocess.run(["javac", "Ask.java"], cwd=directory, check=True, capture_output=True)
    return {"Ask.class": (directory / "Ask.class").read_bytes()}


def test_httpclient(world, compiled):
    place = "://www.open.example"
    urls = [
        f"https{place}/files/java.bin",
        f"http{place}/files/java.bin",
        f"https{place}/upload",
        f"http{place}/upload",
        "https://read.example/no",
        "https://read.example/up",
        "http://read.example/up",
    ]
    tried = world.run(["java", "-cp", ".", "Ask", *urls], files=compiled)
    [said] = tried.said
    assert said.ok, said.err
    https, http, up, told, up_in_the_clear, told_in_the_clear, denied, refused, refused_in_the_clear = (
        said.out.splitlines()
    )
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert https == f"200 HTTP_2 {digest} "
    assert http == f"200 HTTP_1_1 {digest} "
    assert up.startswith("200 HTTP_2")
    assert up_in_the_clear.startswith("200 HTTP_1_1")
    for one in (told, told_in_the_clear):
        assert json.loads(one) == {"size": 3_000_000, "sha256": hashlib.sha256(bytes(3_000_000)).hexdigest()}
    for one, version in (denied, "2"), (refused, "2"), (refused_in_the_clear, "1_1"):
        assert one.startswith(f"403 HTTP_{version}")
        assert one.endswith(" deny;reason=no_rule")
