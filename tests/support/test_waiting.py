import asyncio

import pytest

from tests.support.waiting import wait_until, wait_until_async


def test_wait_until_returns_the_first_true_value():
    values = iter([0, None, "ready"])
    assert wait_until(lambda: next(values), pause=0) == "ready"


def test_wait_until_fails_with_what_did_not_happen():
    with pytest.raises(AssertionError, match="a reply did not happen within"):
        wait_until(lambda: False, "a reply", seconds=0.01, pause=0)


def test_wait_until_async_lets_other_tasks_run():
    async def scenario():
        done = []
        asyncio.get_running_loop().call_soon(done.append, True)
        assert await wait_until_async(lambda: done) == [True]
        with pytest.raises(AssertionError, match="a reply did not happen"):
            await wait_until_async(lambda: False, "a reply", seconds=0.01)

    asyncio.run(scenario())
