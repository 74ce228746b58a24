"""Nodes that behave as the old programs do, for tests of whatever has to live with those.

:class:`OldServer` and :class:`OldClient` take the place of a NodePass server or client of 1.6, 1.14
or 2.0: they speak its dialect, wait as long as it waits, and do wrong what it does wrong. They
run on the reactor that they are given, beside what is tested, and need no program of that time::

    server = OldServer(reactor, Dialect.V1_14, Endpoint("127.0.0.1", 10101), visitors, key="k")
    server.start()
    ...
    await server.ready()
    ...
    server.stop()

They are for tests, not for use: a node that serves people is ``nodepass`` with ``wire=``.
"""

from nodepass.wire.old.dialect import Dialect

from .oldclient import OldClient
from .oldserver import OldServer
from .oldtunnel import Ended
from .timing import OldTiming

__all__ = ["Dialect", "Ended", "OldClient", "OldServer", "OldTiming"]
