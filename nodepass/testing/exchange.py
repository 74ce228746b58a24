"""How an old node carries one session: what it passes on, and what it forgets to."""

from __future__ import annotations

from nodepass.wire.old.dialect import Dialect

from .conn import Conn, Gone, Link
from .tasks import Silence, together

__all__ = ["exchange"]


async def exchange(dialect: Dialect, link: Link, socket: Conn, read: float) -> None:
    """Carry bytes both ways until both have ended. Neither connection is closed at the end.

    In 1.14 and 2.0 without `read` the end of one way closes what it led to: the link is told so by
    FIN where it is plain; a link under TLS and the visitor's or target's socket are closed whole,
    which cuts the other way off. With `read`, and always in 1.6, the end of one way is told to
    nobody: the other must end by itself, or by silence.

    :param socket: the visitor's or the target's.
    :param read: seconds of silence that end a way; 0 for none.
    """
    closes = dialect.traits.http and not read

    async def copy(source: Link, to: Link) -> None:
        try:
            while True:
                data = await source.read(timeout=read or None)
                if not data:
                    break
                await to.write(data)
        except (Silence, Gone):
            pass
        if closes:
            if to is link and link.half_closes:
                to.finish()
            else:
                to.close()

    await together([copy(link, socket), copy(socket, link)])
