"""How many worker processes there are, and why not more."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from twisted.internet import reactor

from nodepass.config import parse_role_url
from nodepass.workers.choice import worker_count

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

KEY = "0123456789abcdef"


def count(url: str) -> tuple[int, str]:
    """The number for a URL, and what is missing."""
    some: Any = reactor
    return worker_count(parse_role_url(url), some)


@pytest.mark.parametrize(
    "url",
    [
        f"server://{KEY}@:1/h:2?workers=3",
        f"client://{KEY}@h:1/h:2?workers=3",
        "client://h:1/h:2?workers=3",
        "client://:1/h:2?workers=3&mode=1&wire=any",  # a plain forwarder speaks none
    ],
)
def test_as_many_as_were_asked_for(url: str) -> None:
    """Servers with a key, clients and plain forwarders have them."""
    assert count(url) == (3, "")


def test_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that the process may use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5, 7})
    assert count(f"server://{KEY}@:1/h:2?workers=auto") == (4, "")


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("server://:1/h:2?workers=3", "set a key"),
        (f"server://{KEY}@:1/h:2?workers=3&wire=any", "wire=native"),
        (f"server://{KEY}@:1/h:2?workers=auto&wire=native,1.14", "wire=native"),
        (f"client://{KEY}@h:1/h:2?workers=3&wire=2.0", "wire=native"),
    ],
)
def test_one_where_others_would_be_left_out(url: str, cure: str) -> None:
    """A node that knows one process of the other end would leave the visitors of the rest
    waiting; what helps is said."""
    number, missing = count(url)
    assert number == 1 and cure in missing


def test_one_is_no_question() -> None:
    """Without `workers` nothing is missing."""
    assert count("server://:1/h:2?wire=any") == (1, "")
