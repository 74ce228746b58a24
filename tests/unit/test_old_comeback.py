"""How soon a client looks for its old server again."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionRefusedError

from nodepass.errors import PeerError
from nodepass.wire.old.comeback import (
    CLOSED_RETURN,
    LATE,
    LONGEST_QUICK_RETURN,
    QUICK_RETURN,
    QUICK_TRIES,
    Comeback,
)

COOLDOWN = 3.0
CLOSED = ConnectionRefusedError()
OTHER = PeerError("no answer")


def tries(comeback: Comeback, until: float) -> list[float]:
    """When a closed port is tried."""
    now, found = 0.0, []
    while now < until:
        found.append(now)
        now += comeback.failed(now, CLOSED)
    return found


@pytest.mark.parametrize("opens", [0.3, 1.0, 3.0, 10.0, 30.0])
def test_a_port_that_opens_is_found_soon(opens: float) -> None:
    """However long it was closed: at most a twentieth of a second or three hundredths of the time
    too late."""
    found = next(at for at in tries(Comeback(COOLDOWN), 60.0) if at >= opens)
    assert found - opens <= max(CLOSED_RETURN, LATE * opens) + 0.001


def test_a_closed_port_is_left_alone_for_longer() -> None:
    """And at last for as long as usual."""
    comeback = Comeback(COOLDOWN)
    assert len(tries(comeback, 60.0)) < 160
    assert comeback.failed(600.0, CLOSED) == COOLDOWN


def test_an_open_port_without_a_tunnel_is_left_alone_for_longer() -> None:
    """Each pause is twice as long as the one before, and after so many tries as long as usual."""
    comeback = Comeback(COOLDOWN)
    pauses = [comeback.lost(), *(comeback.failed(0.0, OTHER) for _ in range(QUICK_TRIES))]
    assert pauses[:5] == [QUICK_RETURN, 0.2, 0.4, 0.8, LONGEST_QUICK_RETURN]
    assert pauses[-2:] == [LONGEST_QUICK_RETURN, COOLDOWN]
    comeback.worked()
    assert comeback.lost() == QUICK_RETURN


def test_no_pause_is_longer_than_the_usual_one() -> None:
    """Whoever asks for less has less."""
    comeback = Comeback(0.01)
    assert {comeback.lost(), comeback.failed(0.0, OTHER), comeback.failed(0.0, CLOSED)} == {0.01}


def test_a_port_that_closes_again() -> None:
    """It is watched as closely as the first time."""
    comeback = Comeback(COOLDOWN)
    tries(comeback, 30.0)
    comeback.failed(30.0, OTHER)
    assert comeback.failed(31.0, CLOSED) == CLOSED_RETURN
