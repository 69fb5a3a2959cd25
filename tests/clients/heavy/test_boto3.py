"""AWS's SDK for Python as it is, with placeholders for its keys, against services that know the real ones."""

import os

import pytest

from tests.invariants.lab_runner import PYTHON
from tests.lab import Lab
from tests.lab.aws import Keys

from . import HOME

PORT = 8447
REAL = Keys("ASIAREALREALREAL0001", "real/Secret+Key0123456789abcdefghijklmno", "real-token//+" * 30)
RULES = """
version: 1
name: aws
secrets:
  - {{id: aws, from: {{file: {path}}}, as: AWS, hosts: "aws.open.example:{port}", in: aws}}
rules:
  - {{id: aws, to: aws.open.example, ports: [{port}/tls], credential: aws, http: {{methods: [GET, HEAD, PUT, POST]}}, action: allow}}
"""
TOLD = [
    ["put", "put"],
    ["get", "some text"],
    ["upload", "put"],
    ["download", True],
    ["presigned", "some text"],
    ["dynamodb", ["ours"]],
    ["sts", "arn:aws:iam::1:user/us"],
    ["denied", "403 403"],
]


@pytest.fixture(scope="module")
def aws(world):
    words = [world.leaf("aws.open.example"), PORT, REAL.ident, REAL.key, REAL.token]
    process = world.serve("tests.clients.heavy.aws_origin", *words, port=PORT)
    yield
    process.kill()


def test_boto3(world, aws):
    path = world.lab.home(Lab.ORDINARY) / "aws.keys"
    path.touch(0o600)
    path.write_text(f"{REAL.ident}:{REAL.key}:{REAL.token}")
    os.chown(path, Lab.ORDINARY, Lab.ORDINARY)
    (site,) = HOME.glob("lib/python3*/site-packages")
    tried = world.run(
        [PYTHON, "programs/aws_sdk.py", f"https://aws.open.example:{PORT}"],
        read=[HOME],
        env={"PYTHONPATH": site, "AWS_EC2_METADATA_DISABLED": "true"},
        rules=world.place.rules(RULES.format(path=path, port=PORT), "aws.yaml"),
    )
    (said,) = tried.said
    assert said.json == TOLD
    for value in (REAL.ident, REAL.key, REAL.token):
        assert value not in said.out + said.err + repr(tried.journal.of())
