"""One command under way, and how it finds the instance that is meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from nodepass.client import MasterClient, MasterError
from nodepass.client.models import Instance
from nodepass.logs import printable

from . import show
from .contexts import Target
from .output import Output

__all__ = ["Run"]


class Run:
    """One command under way.

    :ivar status: what the process exits with.
    """

    def __init__(
        self,
        master: MasterClient,
        target: Target,
        options: argparse.Namespace,
        out: Output,
        reactor: Any,
    ) -> None:
        self.master = master
        self.target = target
        self.options = options
        self.out = out
        self.reactor = reactor
        self.status = 0

    def failed(self, text: str) -> None:
        """Say that a part of the work was not done, and go on with the rest."""
        self.out.note(text)
        self.status = 1

    async def find(self, name: str, instances: Sequence[Instance] | None = None) -> Instance:
        """Return the instance of an id, of an alias, or of the beginning of an id.

        :raises MasterError: there is none, or more than one.
        """
        if instances is None:
            instances = await self.master.list()
        for found in (
            [one for one in instances if one.id == name],
            [one for one in instances if name and one.alias == name],
            [one for one in instances if name and one.id.startswith(name.lower())],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                which = ", ".join(map(show.named, found[:5]))
                raise MasterError(
                    f"{printable(name)}: could be any of {which}; give more of the id"
                )
        raise MasterError(f"{printable(name)}: no such instance; nodepass ctl list shows all")
