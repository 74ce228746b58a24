"""What an instance allows itself: a number of sessions."""

from __future__ import annotations

#: Open files of a TCP session: its own socket and its data link. One that shares a link may need
#: its own at any time. A flow has at most one, as many share a link.
TCP_FILES = 2
#: Open files kept for all else: listeners, control links, strangers, idle links, log files. Where
#: there are few files altogether it is a quarter of them.
SPARE_FILES = 128


class Slots:
    """The sessions under way, counted against the most that are allowed.

    Flows (UDP) take at most half, of the limit and of the open files, because anybody can open them
    with forged addresses; TCP sessions may take all.

    :param limit: most sessions of both kinds together; 0 means no limit.
    :param files: the files that the process may have open; sessions beyond what they allow are
        refused like those beyond the limit, because a node without a free file can neither dial
        nor be joined. None means no limit.
    """

    __slots__ = ("_files", "flow_limit", "limit", "tcp", "udp", "why")

    def __init__(self, limit: int, files: int | None = None) -> None:
        self.limit = limit
        #: Names the limit in log lines.
        self.why = f"slot={limit}"
        self._files: int | None = None
        halves = [limit // 2] if limit else []
        if files is not None:
            self._files = max(TCP_FILES, files - min(SPARE_FILES, files // 4))
            halves.append(self._files // 2)
            most = self._files // TCP_FILES
            if not limit or most < limit:
                self.why = f"{files} open files (ulimit -n) allow {most} sessions"
        #: TCP sessions under way.
        self.tcp = 0
        #: Flows under way.
        self.udp = 0
        #: Most flows, None without a limit. A limit of one still lets a flow in when no TCP
        #: session is there.
        self.flow_limit = max(1, min(halves)) if halves else None

    def acquire_tcp(self) -> bool:
        """Take a slot for a TCP session; False when all are taken."""
        # The checks stand in `acquire_udp` as well: each connection passes here, at a call less.
        tcp = self.tcp
        if self.limit and tcp + self.udp >= self.limit:
            return False
        if self._files is not None and (tcp + 1) * TCP_FILES + self.udp > self._files:
            return False
        self.tcp = tcp + 1
        return True

    def release_tcp(self) -> None:
        """Give back the slot of a TCP session."""
        assert self.tcp > 0, "released more TCP sessions than were acquired"
        self.tcp -= 1

    def acquire_udp(self) -> bool:
        """Take a slot for a flow; False when all, or the half that is for flows, are taken."""
        if self.flow_limit is not None and self.udp >= self.flow_limit:
            return False
        if self.limit and self.tcp + self.udp >= self.limit:
            return False
        if self._files is not None and self.tcp * TCP_FILES + self.udp + 1 > self._files:
            return False
        self.udp += 1
        return True

    def release_udp(self) -> None:
        """Give back the slot of a flow."""
        assert self.udp > 0, "released more flows than were acquired"
        self.udp -= 1
