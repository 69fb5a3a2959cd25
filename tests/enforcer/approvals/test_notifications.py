"""What goes out to receivers: signed, tried again, bounded, and never anybody's markup; programs that review."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from enforcer.approvals import notifications
from enforcer.approvals.notifications import Notifications, Receiver, Threads
from proxy.approvals.model import Vote
from proxy.approvals.people import NotificationTarget, People, Reviewer, Secret

KEY = "whsec_" + base64.b64encode(b"k" * 32).decode()
CARD = {"id": "abcd2345", "summary": "POST <!channel>"}


class Receivers:
    """An HTTP server that answers with what it is told to, and keeps what it got."""

    def __init__(self, answers):
        self.got = []
        heard = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.append((self.path, dict(self.headers), body))
                status, content = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?team=web"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(notifications, "_FIRST_REST", 0.001)
    monkeypatch.setattr(notifications, "_LONGEST_REST", 0.001)


async def so(found):
    """Wait until something is."""
    async with asyncio.timeout(60):
        while not found():  # noqa: ASYNC110  threads do it
            await asyncio.sleep(0.001)


def told(people, until, text="text"):
    """Tell of a question, until something is so; return what an admin was told."""
    said = []

    async def tell():
        threads = Threads()
        telling_ = Notifications(people, threads, said.append)
        telling_.asked(CARD, text, "a")
        await so(lambda: until(said))
        telling_.close()
        threads.close()

    asyncio.run(tell())
    return said


def test_webhook_is_signed_and_retried(tmp_path):
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    with Receivers([(503, b""), (200, b"")]) as there:
        people = People(notices=(NotificationTarget(webhook=there.url, secret=Secret(file=str(key))),))
        said = told(people, lambda said: len(said) == 2)
    (path, first, _), (_, headers, body) = there.got
    assert path == "/hook?team=web"
    assert json.loads(body) == {"type": "approval.asked", "card": CARD}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    proof = base64.b64encode(hmac.new(b"k" * 32, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{proof}"
    assert headers["webhook-id"] == first["webhook-id"]
    assert "answered 503" in said[0]
    assert "/hook" not in "".join(said)  # a webhook's path may be all the secret that it has
    assert said[1].endswith("works again")


def test_slack_message_escapes_markup_of_the_task():
    with Receivers([(200, b"ok")]) as there:
        told(
            People(notices=(NotificationTarget(webhook=there.url, shape="slack"),)),
            lambda _: there.got,
            "<!channel> `x`\n\x1b[2J&",
        )
    text = json.loads(there.got[0][2])["text"]
    assert text == "```&lt;!channel&gt; \u2019x\u2019\n\\x1b[2J&amp;```"


def test_failing_receiver_is_reported_once_and_redirects_are_refused(tmp_path):
    with Receivers([(302, b"")]) as there:
        said = told(
            People(notices=(NotificationTarget(webhook=there.url),)), lambda _: len(there.got) == notifications.TRIES
        )
    assert len(said) == 1
    said = told(People(notices=(NotificationTarget(command=("/nowhere/at/all",)),)), bool)
    assert said == ["the notifier `/nowhere/at/all`: `/nowhere/at/all` cannot be run: No such file or directory"]


class Held:
    """A receiver that takes nothing more until it may go on."""

    def __init__(self):
        self.taken, self.go_on, self.said = [], threading.Event(), []

    def receiver(self, threads):
        return Receiver("it", self._send, threads, self.said.append)

    def _send(self, body):
        self.go_on.wait(60)
        self.taken.append(body)
        return b""


def test_queue_of_a_receiver_is_bounded_and_drops_the_oldest():
    held = Held()

    async def flood():
        threads = Threads()
        receiver = held.receiver(threads)
        for number in range(notifications.MOST_WAITING * 3):
            receiver.put(b"%d" % number, "a")
            if not number:
                await asyncio.sleep(0.01)  # the first is under way
        held.go_on.set()
        await so(lambda: len(held.taken) > notifications.MOST_WAITING)
        threads.close()

    asyncio.run(flood())
    assert held.taken[0] == b"0"
    assert held.taken[-1] == b"%d" % (notifications.MOST_WAITING * 3 - 1)
    assert held.said[0] == "it: too much waits for it; the oldest notices are lost"


def test_flood_of_one_task_does_not_displace_notices_of_others():
    held = Held()

    async def flood():
        threads = Threads()
        receiver = held.receiver(threads)
        receiver.put(b"first", "hostile")
        await asyncio.sleep(0.01)  # it is under way
        receiver.put(b"other", "other")
        for _ in range(notifications.MOST_WAITING * 3):
            receiver.put(b"more", "hostile")
        held.go_on.set()
        await so(lambda: len(held.taken) > notifications.MOST_WAITING)
        threads.close()

    asyncio.run(flood())
    assert held.taken[:3].count(b"other") == 1
    assert len(held.taken) == notifications.MOST_WAITING + 1


def test_failed_notice_does_not_delay_other_tasks(monkeypatch):
    monkeypatch.setattr(notifications, "_FIRST_REST", 3600.0)
    taken = []

    def send(body):
        if body == b"hostile":
            raise notifications.DeliveryError("it answered 500")
        taken.append(body)
        return b""

    async def tell():
        threads = Threads()
        receiver = Receiver("it", send, threads, print)
        for _ in range(20):
            receiver.put(b"hostile", "hostile")
        receiver.put(b"other", "other")
        await so(lambda: taken)
        receiver.close()
        threads.close()

    asyncio.run(tell())
    assert taken == [b"other"]


def test_slow_reviews_of_one_task_delay_neither_others_nor_notices():
    held, said = threading.Event(), []

    def slow(_body):
        held.wait(60)
        return b""

    def quick(body):
        said.append(body)
        return body

    async def ask():
        threads = Threads()
        hostile = [asyncio.create_task(threads.ask(slow, b"", "hostile")) for _ in range(20)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            assert await threads.ask(quick, b"review", "other") == b"review"
            await threads.tell(quick, b"notice")
        assert not any(task.done() for task in hostile)
        held.set()
        await asyncio.gather(*hostile)
        threads.close()

    asyncio.run(ask())
    assert said == [b"review", b"notice"]


REVIEWS = {
    "approves": ('echo \'{"answer": "approve", "why": "small"}\'', Vote.APPROVE, "small"),
    "rejects": ('echo \'{"answer": "reject"}\'', Vote.REJECT, ""),
    "passes": ('echo \'{"answer": "pass"}\'', Vote.PASS, ""),
    "fails": ("exit 3", Vote.PASS, "ended with status 3"),
    "hangs": ("sleep 600 & wait", Vote.PASS, "took longer than 0.3 seconds"),
    "nonsense": ("echo '[1]'", Vote.PASS, "its answer is not"),
    "no end": ("echo '{\"answer\": '; head -c 60000 /dev/zero | tr '\\0' '['", Vote.PASS, "its answer is not"),
    "another word": ('echo \'{"answer": "granted"}\'', Vote.PASS, "its answer is not"),
    "too much": ("head -c 1000000 /dev/zero", Vote.PASS, "its answer is not"),
}


@pytest.mark.parametrize("case", REVIEWS)
def test_output_of_a_reviewer_program_becomes_a_vote(case):
    script, vote, why = REVIEWS[case]
    said = []

    async def review():
        threads = Threads()
        reviewer = Reviewer("linter", (), command=("/bin/sh", "-c", script), timeout=0.3 if case == "hangs" else 60.0)
        try:
            return await Notifications(People(), threads, said.append).review(reviewer, CARD, "a")
        finally:
            threads.close()

    found = asyncio.run(review())
    assert found.vote is vote
    assert why in found.why
    assert bool(said) == ("failed" in found.why)


def test_reviewer_webhook_gets_the_same_card(tmp_path):
    with Receivers([(200, b'{"answer": "reject", "why": "no"}')]) as there:

        async def review():
            threads = Threads()
            try:
                return await Notifications(People(), threads, print).review(
                    Reviewer("far", (), webhook=there.url), CARD, "a"
                )
            finally:
                threads.close()

        assert asyncio.run(review()) == notifications.ReviewAnswer(Vote.REJECT, "no")
    assert json.loads(there.got[0][2]) == {"type": "approval.review", "card": CARD}


def test_reviewer_webhook_client_is_made_once(monkeypatch):
    made = []

    def webhook(url, _headers, _patience):
        made.append(url)
        return lambda _body: b'{"answer": "pass"}'

    monkeypatch.setattr(notifications, "webhook", webhook)

    async def review():
        threads = Threads()
        telling_ = Notifications(People(), threads, print)
        for name in ("far", "near", "far"):
            await telling_.review(Reviewer(name, (), webhook=f"https://{name}.example/"), CARD, "a")
        threads.close()

    asyncio.run(review())
    assert made == ["https://far.example/", "https://near.example/"]
