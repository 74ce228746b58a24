"""The port for clients: bound at once, later, or never."""

from __future__ import annotations

import errno

from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock

from nodepass.address import Address, Endpoint
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.roles.tunnelport import TunnelPort
from nodepass.tuning import Tuning


class Rig:
    """A tunnel port that can be bound when `error` is 0.

    @ivar tries: how often that was tried.
    """

    def __init__(self, error: int) -> None:
        self.error = error
        self.tries = 0
        self.failures: list[FatalError] = []
        self.clock = Clock()
        self.health = Health(Log(Level.NONE))
        self.port = TunnelPort(
            self.clock,
            Address("127.0.0.1", 1),
            Tuning(service_cooldown=3.0),
            self.health,
            listen=self.listen,
            where=lambda number: Endpoint("127.0.0.1", number),
            failed=self.failures.append,
        )

    def listen(self) -> int:
        """What is bound, if it can be."""
        self.tries += 1
        if self.error:
            raise CannotListenError("127.0.0.1", 1, OSError(self.error, "no"))
        return 7


def test_a_port_in_use_is_bound_when_it_is_free() -> None:
    """It is tried again each cooldown, asked for or not; the trouble says what helps, and ends."""
    rig = Rig(errno.EADDRINUSE)
    for _ in range(2):
        rig.port.bind()
    assert rig.tries == 1
    assert rig.port.address is None
    assert "another program" in str(rig.health.reason)
    assert "give another port" in str(rig.health.reason)
    rig.clock.advance(3)
    assert rig.tries == 2
    rig.error = 0
    rig.clock.advance(3)
    assert rig.port.address == Endpoint("127.0.0.1", 7)
    assert rig.health.reason is None
    rig.port.bind()
    assert rig.tries == 3 and not rig.clock.getDelayedCalls()
    assert rig.port.stop() == 7
    assert rig.port.address is None and not rig.failures


def test_a_port_that_never_can_be_bound() -> None:
    """That is told once, with what helps, and not tried again."""
    rig = Rig(errno.EACCES)
    rig.port.bind()
    (failure,) = rig.failures
    assert "above 1023" in str(failure)
    assert not rig.clock.getDelayedCalls()


def test_stopped_while_it_waits() -> None:
    """It is not bound any more."""
    rig = Rig(errno.EADDRINUSE)
    rig.port.bind()
    assert rig.port.stop() is None
    assert not rig.clock.getDelayedCalls()
