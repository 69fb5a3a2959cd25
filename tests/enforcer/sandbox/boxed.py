"""What a task finds in its box: run inside, it tries each thing it is told to and prints what came of it."""

import json
import os
import stat
import sys


def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def write(path):
    with open(path, "w", encoding="utf-8") as file:
        file.write("by the task")
    return "written"


def append(path):
    with open(path, "a", encoding="utf-8") as file:
        file.write("+")
    return "written"


def names(path):
    return sorted(os.listdir(path))


def rename(path):
    os.rename(path, path + ".moved")
    return "renamed"


def link(path):
    os.link(path, path + ".linked")
    return "linked"


def replace(path):
    os.unlink(path)
    return "removed"


def owner(path):
    status = os.stat(path)
    return [status.st_uid == os.getuid(), status.st_gid == os.getgid(), oct(stat.S_IMODE(status.st_mode))]


def variable(name):
    return os.environ[name]


def is_there(path):
    return os.path.lexists(path)


def tried(what):
    kind, argument = what
    try:
        return globals()[kind](argument)
    except KeyError:
        return "not set"
    except OSError as error:
        return os.strerror(error.errno)


if __name__ == "__main__":
    print(json.dumps([tried(what) for what in json.loads(sys.argv[1])]))
