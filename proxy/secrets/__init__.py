"""Secret injection: a task has placeholders, and the gate replaces them by the real values.

Home of invariant 8 for `secrets`: a value is in the worker's memory and on verified TLS to its hosts, and nowhere else:
in no event, log, page, error, argument or environment. What holds one shows nothing and can't be pickled.
"""

from proxy.secrets.injection import SecretInjector
from proxy.secrets.values import AwsKeys, Identity, SecretValue, make_aws_keys, make_placeholder, split_aws_keys

__all__ = [
    "AwsKeys",
    "Identity",
    "SecretInjector",
    "SecretValue",
    "make_aws_keys",
    "make_placeholder",
    "split_aws_keys",
]
