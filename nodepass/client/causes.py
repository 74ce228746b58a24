"""From what a request met to an error that says what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
from OpenSSL import SSL
from twisted.internet import error as neterror
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from nodepass.logs import printable
from nodepass.tls import tls_reason

from .address import APIAddress
from .errors import (
    BadAnswer,
    Cut,
    MasterError,
    MissingFeature,
    NotAMaster,
    NotFound,
    Refused,
    ServerTrouble,
    TLSMismatch,
    Unreachable,
    WrongKey,
)

__all__ = ["of_answer", "of_failure"]

_KEY_CURE = (
    "it is another master's, or was renewed; nodepass key --master on the master's machine shows it"
)

#: How answers of a TLS server to a request without TLS begin, as Go's and nginx's do.
_HTTPS_HINTS = (b"HTTP request to an HTTPS server", b"plain HTTP request was sent to HTTPS")


def of_failure(address: APIAddress, error: BaseException) -> BaseException:
    """Return what to raise for a request that got no answer.

    What is no trouble of the network, such as a cancellation, is returned as it is.
    """
    found = list(_flat(error))
    for part in found:
        if isinstance(part, (MasterError, CancelledError)):
            return part
    for part in found:
        named = _network_trouble(address, part)
        if named is not None:
            return named
    if not isinstance(error, (ResponseFailed, neterror.ConnectionClosed)):
        return error
    if isinstance(error, (ResponseNeverReceived, neterror.ConnectionClosed)):
        cure = (
            f"If its URL has tls=1 or tls=2: {address.try_tls}"
            if not address.tls
            else f"If its URL has no tls: --api http{str(address).removeprefix('https')}"
        )
        return Cut(
            f"{address}: the connection was closed without an answer; is it a master's port? {cure}"
        )
    return Cut(f"{address}: the connection was cut in the middle of the answer")


def _network_trouble(address: APIAddress, error: BaseException) -> MasterError | None:
    where = f"{address}"
    if isinstance(error, SSL.Error):
        words = tls_reason(Failure(error))
        if "does not speak TLS" in words:
            what = "speaks only TLS below 1.3" if "1.3" in words else "does not speak TLS"
            cure = (
                "switch on TLS 1.3 there (nginx: ssl_protocols TLSv1.2 TLSv1.3;)"
                if "1.3" in words
                else f"try --api http{where.removeprefix('https')}"
            )
            return TLSMismatch(f"{where}: the other end {what}; {cure}")
        return TLSMismatch(f"{where}: {words}")
    if address.unix is not None and isinstance(error, neterror.ConnectError):
        return Unreachable(
            f"{where}: no connection ({_system_words(error)}); is the master running, does its URL "
            "name this socket, and is this user in its group?"
        )
    if isinstance(error, neterror.ConnectionRefusedError):
        return Unreachable(
            f"{where}: connection refused; is the master running, and is this its port?"
        )
    if isinstance(error, neterror.DNSLookupError):
        return Unreachable(f"{where}: no address found for {address.host}; is it spelt right?")
    if isinstance(error, (neterror.TimeoutError, neterror.TCPTimedOutError)):
        return Unreachable(
            f"{where}: no connection in time; is the machine up, and does its firewall let this "
            "port through?"
        )
    if isinstance(error, neterror.ConnectError):
        return Unreachable(f"{where}: no connection: {printable(str(error)).removesuffix('.')}")
    if type(error).__name__ in ("ParseError", "BadResponseVersion", "BadHeaders"):
        if not address.tls:
            return TLSMismatch(
                f"{where}: the answer is not HTTP; if the master's URL has tls=1 or tls=2: "
                f"{address.try_tls}"
            )
        return NotAMaster(f"{where}: the answer is not HTTP; is it a master's port?")
    return None


def _system_words(error: neterror.ConnectError) -> str:
    """What the system said about a connection that could not be made."""
    return os.strerror(error.osError).lower() if error.osError else "no answer in time"


def _flat(error: BaseException) -> Iterator[BaseException]:
    """The errors that an agent wrapped into one, and that one."""
    if isinstance(error, ResponseFailed):
        for reason in error.reasons:
            yield from _flat(reason.value)
    yield error


def of_answer(
    address: APIAddress, status: int, body: bytes, location: str = "", challenge: str = ""
) -> MasterError:
    """Return what to raise for an answer whose status is not 2xx.

    :param body: what came with it, or its beginning.
    :param location: the header of that name.
    :param challenge: the header ``WWW-Authenticate``, which no master sends.
    """
    where = f"{address}"
    reason = server_words(body)
    if status == http.UNAUTHORIZED and (challenge or not reason):
        return NotAMaster(
            f"{where}: the proxy in front asks for a sign-in; let it pass on the API's path "
            "without one, as the master checks its key by itself"
        )
    if status == http.UNAUTHORIZED:
        return WrongKey(f"{where}: the API key is wrong; {_KEY_CURE}")
    if 300 <= status < 400:
        return NotAMaster(
            f"{where}: redirects to {printable(location) or 'nowhere'}, and the key is sent "
            "nowhere else; give that address if it is the master's"
        )
    if status >= 500:
        words = reason or http.RESPONSES.get(status, b"").decode()
        what = "the master is not there, says the proxy" if status in (502, 504) else "failed"
        return ServerTrouble(f"{where}: {what} ({status} {words}); see the master's log")
    if status == http.BAD_REQUEST and any(hint in body for hint in _HTTPS_HINTS):
        return TLSMismatch(f"{where}: speaks TLS; {address.try_tls}")
    if not reason:
        if status == http.NOT_FOUND:
            return NotAMaster(
                f"{where}: no master's API there; is the prefix right? It is the path of the "
                "master's URL, /api unless given"
            )
        return NotAMaster(
            f"{where}: refused with {status}, and not as a master does; is a proxy in between?"
        )
    if status == http.NOT_ALLOWED:
        return MissingFeature(
            f"{where}: the master does not know this request; is it too old? "
            "nodepass ctl info shows its version"
        )
    if status == http.NOT_FOUND:
        return NotFound(f"{where}: {reason}; nodepass ctl list shows what there is", 404, reason)
    return Refused(f"{where}: refused: {reason}", status, reason)


def server_words(body: bytes) -> str:
    """The server's own words about an error, escaped; empty where it has none that we know."""
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ""
    reason = answer.get("error") if isinstance(answer, dict) else None
    return printable(reason) if isinstance(reason, str) else ""


def unreadable(address: APIAddress, content_type: str, error: Exception) -> MasterError:
    """Return what to raise for an answer of 200 that is not what was asked for."""
    if "html" in content_type:
        return NotAMaster(
            f"{address}: a web page, not a master's API; is the prefix right? It is the path of "
            "the master's URL, /api unless given"
        )
    return BadAnswer(f"{address}: the answer can't be read: {printable(str(error))}")
