"""The credential broker: a task has placeholders, and the gate puts the real values where they belong.

Home of the part of invariant 8 that is about `secrets`: a value is in the worker's memory and on verified TLS to the
hosts its rule file names, and nowhere else. It must never get into an event, a log, a page, an error, an argument or an
environment; what holds one shows nothing and is not to be pickled.
"""

from proxy.secrets.injection import Broker
from proxy.secrets.values import Held, Identity, Keys, keys, make_placeholder, split

__all__ = ["Broker", "Held", "Identity", "Keys", "keys", "make_placeholder", "split"]
