"""The links that are being closed in order, for as long as that may take."""

from __future__ import annotations

from nodepass.relay.stream import Cause

from .datalink import DataLink

__all__ = ["LEAVING_TIMEOUT", "LeavingLinks"]

#: Seconds that a link may take to be closed in order, from the begin: time for what the systems
#: hold to pass a slow line. A peer that lies may have those kept that were closed meanwhile, which
#: is one for two intervals.
LEAVING_TIMEOUT = 600.0


class LeavingLinks:
    """Those that nobody needs. When their pool is closed its end sees to their time as well."""

    def __init__(self) -> None:
        self._since: dict[DataLink, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def close(self, link: DataLink, now: float) -> None:
        """Begin to close a link, if that was not begun.

        :param now: the clock's seconds.
        """
        self._since.setdefault(link, now)
        if link.mux is not None:
            # What its last session has said may still be on its way. No session hears the cause.
            link.part(Cause.STOPPED)
        else:
            link.close()

    def discard(self, link: DataLink) -> None:
        """A link is gone."""
        self._since.pop(link, None)

    def cut_late(self, now: float) -> None:
        """Cut those that have taken too long."""
        for link, since in list(self._since.items()):
            if now - since > LEAVING_TIMEOUT:
                link.abort("the other end does not close it")
