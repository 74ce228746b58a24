"""Whether there is nobody between two old nodes: both name the certificate that they see. No I/O.

With `tls=1` nobody vouches for the server's certificate. Each end says over the control link which
one it knows, and a link on which to compare it, which it gives up for that. So the links' ends are
told apart from somebody who has put himself between them, as far as he does not know the key.
"""

from __future__ import annotations

from nodepass.parameters import TLSLevel
from nodepass.wire import Flow

from .dialect import Dialect

__all__ = ["Verification"]


class Verification:
    """What one end still has to do of it.

    :param server: this is the server's end.
    :ivar due: whether this end is to send a verify yet.
    :ivar passed: whether visitors may be served.
    """

    def __init__(self, dialect: Dialect, tls: TLSLevel, flow: Flow, *, server: bool) -> None:
        self._strict = tls is TLSLevel.SELF_SIGNED
        self._known = ""
        agreed = int(tls) in dialect.traits.verified
        # A 1.14 server with tls=2 has no fingerprint, and drops the tunnel on any verify; the chain
        # has told the client who it is.
        self.due = agreed and (server or self._strict)
        visitors = (flow is Flow.REVERSE) == server
        self.passed = not (agreed and self._strict and visitors)

    def knows(self, fingerprint: str) -> None:
        """This is the certificate as this end sees it; the first one counts."""
        self._known = self._known or fingerprint

    def judge(self, theirs: str, ours: str) -> bool:
        """The peer has sent its verify.

        :param theirs: the fingerprint in it.
        :param ours: as the link that it names has it; empty where there is no such link any more.
        :returns: whether the tunnel may go on.
        """
        if not theirs and not self._strict:
            return True  # a 1.14 server with tls=2
        if theirs != (ours or self._known):
            return False
        self.passed = True
        return True
