"""Worker processes on the wire: how a link names its worker, and who joins whom. No I/O.

A server may be several processes behind one port, and a client several too. Each link belongs to
one of the server's, whose number it names before anything else, so that whoever accepts it can pass
it on unread.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Begins the ALPN name that says for which of the server's workers a connection is.
PREFIX = b"w"
#: Hex digits of a number: it has 16 bits, as in the preface of a data link.
MOST_DIGITS = 4


def tag(worker: int) -> list[bytes]:
    """What to offer behind the ALPN name of the link's kind; nothing for the first worker."""
    return [PREFIX + b"%x" % worker] if worker else []


def tagged(offered: Iterable[bytes]) -> int:
    """The worker that a list of ALPN names says; 0 where none does."""
    for name in offered:
        digits = name.removeprefix(PREFIX)
        if (
            digits != name
            and 0 < len(digits) <= MOST_DIGITS
            and not digits.strip(b"0123456789abcdef")
        ):
            return int(digits, 16)
    return 0


def partners(own: int, clients: int, servers: int) -> list[int]:
    """The server's workers that one of the client's joins, the one that it joins first in front.

    Each worker of one end gets two of the other's, where there are two: so that none waits for a
    process that is being replaced, and so that the number of associations grows with the larger end
    alone, and not with the product.

    :param own: which of the client's workers.
    :param clients, servers: how many workers each end has.
    """
    joined = dict.fromkeys(server for server, client in _pairs(clients, servers) if client == own)
    first = own % servers
    return [first, *(server for server in joined if server != first)]


def associations(clients: int, servers: int) -> int:
    """How many associations a client has with a server, all workers together."""
    return len(set(_pairs(clients, servers)))


def _pairs(clients: int, servers: int) -> Iterable[tuple[int, int]]:
    """Server's and client's worker: each of the larger end has two of the smaller one's."""
    for number in range(max(clients, servers)):
        for other in (number, number + 1):
            if servers > clients:
                yield number, other % clients
            else:
                yield other % servers, number
