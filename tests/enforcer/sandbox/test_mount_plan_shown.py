"""Which paths lie in what is shown, asked of many at once, is what it is of each by itself."""

from hypothesis import given
from hypothesis import strategies as st

from enforcer.sandbox.system_paths import ShownPaths, contains, outermost

names = st.sampled_from(["a", "b", "ab", "a-", "a.b", "-", "0"])
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))
several = st.lists(paths, max_size=6)


@given(several, paths)
def test_containment_of_paths(places, path):
    shown = ShownPaths(places)
    assert shown.contains_path(path) == any(contains(place, path) for place in places)
    inside = [place for place in places if contains(path, place)]
    found = shown.find_inside(path)
    assert found in inside if inside else found is None


@given(several)
def test_outermost_paths_contain_all_others(found):
    assert outermost(found) == sorted(
        path for path in {*found} if not any(other != path and contains(other, path) for other in found)
    )
