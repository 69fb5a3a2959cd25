"""A home that is made to look as if something had run in it is one to whatever runs."""

from tests.support.homes import MADE_ONCE, RULES, STATE


def _there(home):
    found = [path for name in MADE_ONCE for path in (home / STATE / name).iterdir()]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_first_run_files_are_made_once(someone):
    before = _there(someone.home)
    assert {name.partition("-")[0] for name in before} == {"ca.json", "ca.pem", "java", "network"}
    rules = someone.write(someone.home / "rules.yaml", RULES)
    assert someone.exeat("run", "--quiet", "--rules", rules, "--", "true").returncode == 0
    assert _there(someone.home) == before
