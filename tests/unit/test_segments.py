"""Which datagrams leave together, where the system can't be asked."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the engine is for Linux", allow_module_level=True)

from nodepass.relay.engine import segments


def test_without_a_socket_to_ask_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Datagrams leave one by one as long as no socket is to be had, of that kind or at all; that is
    not remembered."""
    segments._asked.cache_clear()

    def none(*_: object) -> Any:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none)
        runs = segments.Runs()
        assert [size for size, _ in runs.split([b"x"] * 3)] == [0]
    assert segments._known() == segments._asked()
