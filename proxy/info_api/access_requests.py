"""Access requests: what a task asks people for in advance, sent to the registry, and their state.

An access request opens nothing: the rules decide on it first, it is bounded, and people have the last word. A task sees
only its own requests: the registry identifies the task by its socket (invariant 4).
"""

import re
from datetime import UTC, datetime
from difflib import get_close_matches
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy.approvals.approval_request import describe_connection, describe_request, explain_unapprovable
from proxy.approvals.protocol import LONGEST_WHY, RequestState, RequestStatus
from proxy.dialing.dialer import preflight
from proxy.info_api.requests import RequestRefusedError
from proxy.telemetry.visible import visible
from rules.attempt import REGISTERED_METHODS
from rules.loading.cases import parse_attempt
from rules.problems import quote
from rules.values.names import InvalidNameError
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from proxy.approvals.approval_request import ApprovalRequest
    from proxy.approvals.client import ApprovalsClient
    from proxy.dialing.address_check import DialError
    from proxy.dialing.dialer import Dialer
    from proxy.info_api.requests import Request
    from proxy.sandbox.recorder import Recorder
    from proxy.telemetry.events import Process
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.loading.cases import AttemptText as Tried
    from rules.matching.policy import Policy

LONGEST: Final = 2000  # characters of an attempt
_ID: Final = re.compile(r"[a-z0-9]{1,64}")
_STATUS: Final = {
    RequestStatus.PENDING: HTTPStatus.ACCEPTED,
    RequestStatus.REFUSED: HTTPStatus.FORBIDDEN,
    RequestStatus.UNKNOWN: HTTPStatus.NOT_FOUND,
}
_HOW: Final = (
    'send `{"attempt": "POST https://host/path", "why": "what it is for"}` as JSON, or the attempt on the first line '
    "and why on the next as text"
)
_NO_RULE: Final = "no rule allows that address, so an approval would have no effect"
_NOBODY: Final = "approval requests are not possible now: no rule has `ask`, or the approvals server is not running"


class _AccessRequest(msgspec.Struct, forbid_unknown_fields=True):
    attempt: str = ""
    why: str = ""


class PendingAnswer[T]:
    """Answer that arrives later (a one-shot future)."""

    def __init__(self) -> None:
        self.state: T | None = None  # None: there was no answer
        self._done = False
        self._then: Callable[[], None] | None = None

    def then(self, callback: "Callable[[], None]") -> None:
        """Call `callback` once the answer has arrived."""
        self._then = callback
        if self._done:
            callback()

    def settle(self, state: T | None) -> None:
        """Store the answer, and call back."""
        self.state, self._done = state, True
        if self._then is not None:
            self._then()


def request_access(
    recorder: "Recorder", request: "Request", process: "Process | None", dialer: "Dialer | None"
) -> "Generator[PendingAnswer[Any], None, tuple[HTTPStatus, Any, str]]":
    """Submit an access request. Raises RequestRefusedError."""
    text, why = _read(request)
    approvals = _approvals_client(recorder)
    approval_request, decision, attempt = _decide_attempt(recorder, text, process)
    if decision.may_send_now:
        return _state_answer(RequestState(RequestStatus.ALLOWED, attempt=approval_request.line()))
    if decision.passes:
        raise RequestRefusedError(
            HTTPStatus.BAD_REQUEST, "each request there needs its own approval: name one, as in `POST https://…`"
        )
    if why_not := explain_unapprovable(decision):
        return _state_answer(RequestState(RequestStatus.REFUSED, attempt=approval_request.line(), why=why_not))
    if decision.needs_approval and dialer is not None:
        checked: PendingAnswer[DialError] = PendingAnswer()
        preflight(dialer, recorder.sandbox.policy, attempt, decision, checked.settle)
        yield checked
        failure = checked.state
        if failure is not None and failure.reason is not Reason.UNRESOLVED:  # the name may exist when the task tries it
            return _state_answer(
                RequestState(
                    RequestStatus.REFUSED, attempt=approval_request.line(), why=f"{failure.detail}: {_NO_RULE}"
                )
            )
    later: PendingAnswer[RequestState] = PendingAnswer()
    ticket = approvals.request_access(approval_request, decision, why, later.settle)
    try:
        yield later
    finally:
        ticket.drop()
    return _state_answer(later.state)


def request_status(
    recorder: "Recorder", approval: str
) -> "Generator[PendingAnswer[RequestState], None, tuple[HTTPStatus, Any, str]]":
    """Return the state of one of this task's requests. Raises RequestRefusedError."""
    if not _ID.fullmatch(approval):
        raise RequestRefusedError(
            HTTPStatus.NOT_FOUND, "invalid approval id: it has only letters and digits, as in the refusal that names it"
        )
    later: PendingAnswer[RequestState] = PendingAnswer()
    ticket = _approvals_client(recorder).query_status(approval, later.settle)
    try:
        yield later
    finally:
        ticket.drop()
    return _state_answer(later.state)


def _approvals_client(recorder: "Recorder") -> "ApprovalsClient":
    approvals = recorder.sandbox.approvals
    if approvals is None or not approvals.is_there:
        raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, _NOBODY)
    return approvals


def _read(request: "Request") -> tuple[str, str]:
    try:
        text = request.body.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "the body is not UTF-8") from None
    if request.kind == "application/json":
        try:
            access_request = msgspec.json.decode(text, type=_AccessRequest)
        except (ValueError, RecursionError) as error:
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, f"the request can't be read ({error}): {_HOW}") from None
        attempt, why = access_request.attempt, access_request.why
    else:
        attempt, _, why = text.strip().partition("\n")
    attempt, why = attempt.strip(), why.strip()
    if not attempt:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, f"there is no attempt: {_HOW}")
    if len(attempt) > LONGEST or len(why) > LONGEST_WHY:
        raise RequestRefusedError(
            HTTPStatus.CONTENT_TOO_LARGE, f"an attempt may have {LONGEST} characters, and a `why` {LONGEST_WHY}"
        )
    return attempt, why


def _decide_attempt(
    recorder: "Recorder", text: str, process: "Process | None"
) -> "tuple[ApprovalRequest, Decision, Attempt]":
    """Decide an attempt as the gate would, and return an approval request for it."""
    sandbox = recorder.sandbox
    try:
        tried = parse_attempt(text)
    except ValueError as error:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None
    if tried.run is not None:
        raise RequestRefusedError(
            HTTPStatus.BAD_REQUEST,
            "access to a program can't be requested in advance: start it, and it waits for approval",
        )
    if tried.record is not None:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "only connections, requests and pushes can be requested")
    _check_method(sandbox.policy, tried)
    tried = tried._replace(caller=sandbox.caller)
    decision = tried.decide(sandbox.policy)
    try:
        attempt = tried.attempt(sandbox.policy)
    except InvalidNameError as error:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None
    if attempt.request is None:
        approval_request = describe_connection(sandbox.sources, attempt, decision, process)
    else:
        approval_request = describe_request(sandbox.sources, attempt, decision, process=process)
    return approval_request if decision.needs_approval else approval_request._replace(rules=()), decision, attempt


def _check_method(policy: "Policy", tried: "Tried") -> None:
    """Refuse methods that no client sends: approving them would waste people's time."""
    method = "" if tried.request is None else tried.request.method
    if not method or method.upper() in REGISTERED_METHODS:
        return
    if any(rule.http is not None and method in (rule.http.methods or ()) for rule in policy.rules):
        return
    similar = get_close_matches(method[:64].upper(), REGISTERED_METHODS, 1)
    hint = f"; did you mean `{similar[0]}`?" if similar else ""
    raise RequestRefusedError(HTTPStatus.BAD_REQUEST, f"{quote(method)} is no method of HTTP{hint}")


def _state_answer(state: "RequestState | None") -> tuple[HTTPStatus, Any, str]:
    if state is None:
        raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, _NOBODY)
    until = datetime.fromtimestamp(state.until, UTC).isoformat(timespec="seconds") if state.until else ""
    values = {
        "standing": state.standing.value,
        "approval": state.approval,
        "attempt": visible(state.attempt),
        "by": list(state.by),
        "why": visible(state.why),
        "until": until,
    }
    lines = [visible(state.attempt) or "This"]
    lines += [f"  {line}" for line in _lines(state, until)]
    return _STATUS.get(state.standing, HTTPStatus.OK), values, "".join(f"{line}\n" for line in lines)


def _lines(state: RequestState, until: str) -> list[str]:
    """Return the status in words, with the next step."""
    id_, lines = state.approval, []
    match state.standing:
        case RequestStatus.PENDING:
            expires = f" It expires at {until}." if until else ""
            lines = [
                f"waits for approval {id_} by a person.{expires}",
                f"what to do: continue with something else, check `GET /requests/{id_}`, and try it once approved",
            ]
        case RequestStatus.APPROVED:
            ends = f", before {until}" if until else ""
            lines = [f"was approved ({id_}): try it now, exactly as requested{ends}"]
        case RequestStatus.REJECTED:
            lines = [
                f"was rejected ({id_})",
                "what to do: do not look for another way; tell the person you work for what you need",
            ]
        case RequestStatus.EXPIRED:
            lines = [f"was not answered in time ({id_}): request it again if you still need it"]
        case RequestStatus.ALLOWED:
            lines = ["needs no approval: the rules allow it, so try it"]
        case RequestStatus.REFUSED:
            return [f"was not submitted: {visible(state.why)}"]
        case RequestStatus.UNKNOWN:
            lines = ["this task has no approval request with this id"]
    has_answer = state.standing in {RequestStatus.APPROVED, RequestStatus.REJECTED} and bool(state.why)
    return [*lines, f"reason given: {visible(state.why)}"] if has_answer else lines
