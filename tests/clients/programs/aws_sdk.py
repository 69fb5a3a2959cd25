"""What AWS's SDK for Python does with the keys that it finds, and what it says."""

import io
import json
import sys
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

here = {"endpoint_url": sys.argv[1], "region_name": "eu-central-1"}
told = []


def tell(name, what):
    try:
        told.append([name, what()])
    except ClientError as error:
        told.append(
            [name, f"{error.response['Error'].get('Code')} {error.response['ResponseMetadata']['HTTPStatusCode']}"]
        )


s3 = boto3.client("s3", **here, config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))
big = bytes(range(256)) * 4096
tell("put", lambda: s3.put_object(Bucket="ours", Key="a b/ü+$.txt", Body=b"some text") and "put")
tell("get", lambda: s3.get_object(Bucket="ours", Key="a b/ü+$.txt")["Body"].read().decode())
tell("upload", lambda: s3.upload_fileobj(io.BytesIO(big), "ours", "big") or "put")
tell("download", lambda: s3.get_object(Bucket="ours", Key="big")["Body"].read() == big)
url = s3.generate_presigned_url("get_object", Params={"Bucket": "ours", "Key": "a b/ü+$.txt"}, ExpiresIn=60)
tell("presigned", lambda: urllib.request.urlopen(url).read().decode())
few = Config(retries={"total_max_attempts": 1})
tell("dynamodb", lambda: boto3.client("dynamodb", **here, config=few).list_tables()["TableNames"])
tell("sts", lambda: boto3.client("sts", **here, config=few).get_caller_identity()["Arn"])
tell("denied", lambda: s3.delete_object(Bucket="ours", Key="big") and "deleted")
print(json.dumps(told))
