"""The credential broker: a task has placeholders, and the gate puts the real values where they belong.

Home of the part of invariant 8 that is about `secrets`: a value is in the worker's memory and on verified TLS to the
hosts its rule file names, and nowhere else. It must never get into an event, a log, a page, an error, an argument or an
environment; what holds one shows nothing and is not to be pickled.
"""

from proxy.broker.certificates import Identity
from proxy.broker.desk import Broker
from proxy.broker.keys import Keys, keys, split
from proxy.broker.values import Held, make_placeholder

__all__ = ["Broker", "Held", "Identity", "Keys", "keys", "make_placeholder", "split"]
