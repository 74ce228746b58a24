"""What a worker is told of its work when it starts."""

from __future__ import annotations

import pickle

from attrs import frozen

from nodepass.config import ClientConfig, ServerConfig
from nodepass.tuning import Tuning

__all__ = ["Work"]


@frozen(kw_only=True)
class Work:
    """A worker's share.

    :ivar config: with a mode that is decided.
    :ivar number: which worker it is, from 0.
    :ivar count: how many there are.
    """

    config: ServerConfig | ClientConfig
    tuning: Tuning
    number: int
    count: int

    def encode(self) -> bytes:
        """As bytes, for a process that runs the same code."""
        return pickle.dumps(self)

    @classmethod
    def decode(cls, data: bytes) -> Work:
        """What `encode` made; only ever of one's own parent."""
        work = pickle.loads(data)
        assert isinstance(work, cls)
        return work
