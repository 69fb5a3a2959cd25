"""What the service has before it forks has no reference count that anybody writes, and goes on working."""

import json
import subprocess
import sys

PROGRAM = """
import enforcer.service.service, json, os, sys, weakref
from enforcer.service.immortal import make_all_immortal

class Kept:
    pass

def constant():
    return ("a", 1.5, lambda: None)

kept, many, text = Kept(), [Kept() for _ in range(100)], "-".join(map(str, range(50)))
number, inner = (each for each in constant.__code__.co_consts if isinstance(each, float | type(constant.__code__)))
named = {"-".join(text): 1}  # a key, which a dictionary of nothing but strings tells no collector of
marked = make_all_immortal()
fresh = Kept()
gone = weakref.ref(fresh)
del fresh
whole = [kept, many, text, os.path.join, Kept, number, inner, next(iter(named))]
before = [sys.getrefcount(each) for each in whole]
others = whole * 100
pid = os.fork()
if pid == 0:
    many.extend(Kept() for _ in range(10000))
    many.clear()
    os._exit(len(json.loads(json.dumps({text: [1, None, "x"] * 100}))[text]) % 256)
_, status = os.waitpid(pid, 0)
print(json.dumps({
    "marked": marked,
    "same": before == [sys.getrefcount(each) for each in whole],
    "as None": [count == sys.getrefcount(None) for count in before],
    "gone": gone() is None,
    "status": os.waitstatus_to_exitcode(status),
}))
"""


def test_no_count_is_written_any_more_of_what_there_was_and_what_comes_later_is_as_ever():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found["marked"]:  # an interpreter of which it is known how
        assert found["as None"] == [True] * 8
        assert found["marked"] > 10_000
    assert (found["same"], found["gone"], found["status"]) == (bool(found["marked"]), True, 300 % 256)
