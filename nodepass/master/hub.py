"""Events: written once, kept for those who come back, handed to all who are subscribed.

No input or output happens here. A subscription takes bytes, and what becomes of them is the
business of `nodepass.master.stream`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from attrs import define, field, frozen
from msgspec.structs import replace

from nodepass.logs import COLOURS, RESET

from .hosting import LogLine
from .models import Event, Instance, Meta, encode

__all__ = ["COMMENT", "CUT", "PREAMBLE", "EventHub", "Subscription", "log_event_text"]

#: Most bytes of an event with all its lines: clients read with buffers of 64 KiB.
MOST_EVENT = 65_535
#: Most events that are kept for subscribers who come back. An id is a number in it.
JOURNAL_EVENTS = 4096
#: Most bytes that those may be. With 200 instances that report every five seconds it holds a
#: minute, with ten a quarter of an hour, and a master's memory hardly shows it.
JOURNAL_BYTES = 2 << 20
#: Bytes that the URL and the configuration of an instance may each take of an event, as JSON,
#: where the event would be too long otherwise: both fit, and all else.
LONG_FIELD = 24 << 10

#: What a stream begins with: browsers try again after 3 s.
PREAMBLE = b"retry: 3000\n\n"
#: What a stream sends when there is nothing to say, so that proxies don't take it for dead.
COMMENT = b": \n\n"
#: What stands where a text was cut.
CUT = "..."

_HEAD = b"event: instance\ndata: "
# Room for "id: ", the boot's name, a number, and line ends.
_ID_ROOM = 64
# The beginning of a colour code that a cut has left behind.
_BROKEN_CODE = re.compile("\x1b(\\[[0-9;]*)?$")
_NUMBER = re.compile("[0-9]{1,18}")


def log_event_text(line: LogLine) -> str:
    """Return a log line as the events show it: with colour, whether or not a terminal is there."""
    text = line.text.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"{line.stamp()}  {COLOURS[line.level]}{line.level.name} {RESET}  {text}"


@frozen(eq=False)
class _Entry:
    """An event of the journal."""

    number: int
    type: str
    instance: str
    data: bytes


@define(eq=False)
class Subscription:
    """What one subscriber is to get: first `backlog`, then what its sink is given.

    :ivar backlog: the events that come first. They are written as they are asked for, so that a
        thousand instances do not fill anybody's queue; each shows its instance as it was when the
        subscription was made.
    """

    _hub: EventHub
    _sink: Callable[[bytes], None]
    _types: frozenset[str] | None
    _instance: str | None
    _resume: bool
    backlog: Iterator[bytes] = field(factory=lambda: iter(()))

    def cancel(self) -> None:
        """Give the sink nothing more."""
        self._hub._subscriptions.pop(self, None)

    def _wants(self, type: str, instance: str) -> bool:
        return (self._types is None or type in self._types) and (
            self._instance is None or instance == self._instance
        )

    def _replay(self, entries: list[_Entry]) -> Iterator[bytes]:
        for entry in entries:
            yield self._hub._id_line(entry.number) + entry.data

    def _initial(self, instances: Sequence[Instance], number: int, when: str) -> Iterator[bytes]:
        last = len(instances) - 1
        for index, instance in enumerate(instances):
            data = _event("initial", when, instance, "")
            # Who is cut off before the last of them has no id to resume from, and gets all again.
            yield self._hub._id_line(number) + data if self._resume and index == last else data


class EventHub:
    """Takes events and gives each to those who want it.

    :param initial: yields all instances in the order in which a new subscriber sees them.
    :param wall: Unix time, seconds.
    """

    def __init__(
        self,
        initial: Callable[[], Iterable[Instance]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._all = initial
        self._wall = wall
        self._boot = secrets.token_hex(4)
        self._number = 0
        self._journal: deque[_Entry] = deque()
        self._journal_bytes = 0
        self._shared: tuple[Instance, ...] = ()
        self._subscriptions: dict[Subscription, None] = {}
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    def publish(self, type: str, instance: Instance | None, logs: str = "") -> None:
        """Give an event to all who want it.

        ``shutdown`` goes to everybody, whatever they filter, and is not kept: who comes back
        after it should not be sent away again.

        :param instance: as it is now; None for ``shutdown`` alone.
        """
        if self._closed:
            return
        data = _event(type, self._now(), instance, logs)
        if instance is None:
            for subscription in list(self._subscriptions):
                subscription._sink(data)
            return
        self._number += 1
        self._keep(_Entry(self._number, type, instance.id, data))
        with_id = b""
        # A list, as a sink may cancel.
        for subscription in list(self._subscriptions):
            if not subscription._wants(type, instance.id):
                continue
            if subscription._resume:
                with_id = with_id or self._id_line(self._number) + data
                subscription._sink(with_id)
            else:
                subscription._sink(data)

    def subscribe(
        self,
        sink: Callable[[bytes], None],
        *,
        types: frozenset[str] | None = None,
        instance: str | None = None,
        resume: bool = False,
        last_id: str | None = None,
    ) -> Subscription:
        """Subscribe to what is published from now on.

        The subscription's `backlog` goes before it: what was published since ``last_id`` or, where
        that is not known any more, all instances as they are.

        :param sink: is given each event's bytes; the same object goes to many.
        :param types: the types that are wanted; None for all.
        :param instance: the one instance that is wanted; None for all.
        :param resume: whether events have ids, and ``last_id`` counts.
        """
        subscription = Subscription(self, sink, types, instance, resume)
        since = self._known(last_id) if resume else None
        if since is None:
            instances = self._wanted(subscription)
            subscription.backlog = subscription._initial(instances, self._number, self._now())
        else:
            missed = [
                entry
                for entry in self._journal
                if entry.number > since and subscription._wants(entry.type, entry.instance)
            ]
            subscription.backlog = subscription._replay(missed)
        if not self._closed:
            self._subscriptions[subscription] = None
        return subscription

    def close(self) -> None:
        """Publish nothing more."""
        self._closed = True
        self._subscriptions.clear()
        self._shared = ()

    def _wanted(self, subscription: Subscription) -> Sequence[Instance]:
        """Return the instances that a new subscriber gets, as they are.

        Those who get all of them share what has not changed from one to the next: many who come at
        a time, and read slowly or not at all, take little more memory than one.
        """
        wanted = [each for each in self._all() if subscription._wants("initial", each.id)]
        if subscription._instance is not None or not wanted:
            return wanted
        known = {each.id: each for each in self._shared}
        for place, instance in enumerate(wanted):
            before = known.get(instance.id)
            if before == instance:
                wanted[place] = before
        shared = tuple(wanted)
        if shared != self._shared:
            self._shared = shared
        return self._shared

    def _keep(self, entry: _Entry) -> None:
        self._journal.append(entry)
        self._journal_bytes += len(entry.data)
        while len(self._journal) > JOURNAL_EVENTS or self._journal_bytes > JOURNAL_BYTES:
            self._journal_bytes -= len(self._journal.popleft().data)

    def _known(self, last_id: str | None) -> int | None:
        """Return the number in an id, or None where the journal does not reach back to it."""
        boot, _, number = (last_id or "").partition("-")
        if boot != self._boot or not _NUMBER.fullmatch(number):
            return None
        oldest = self._journal[0].number if self._journal else self._number + 1
        return int(number) if oldest - 1 <= int(number) <= self._number else None

    def _id_line(self, number: int) -> bytes:
        return b"id: %s-%d\n" % (self._boot.encode(), number)

    def _now(self) -> str:
        when = datetime.fromtimestamp(self._wall()).astimezone()
        return when.isoformat(timespec="milliseconds")


def _event(type: str, when: str, instance: Instance | None, logs: str) -> bytes:
    """Write an event, cut where it would be too long."""
    event = Event(type=type, time=when, instance=instance, logs=logs)
    data = encode(event)
    room = MOST_EVENT - _ID_ROOM - len(_HEAD)
    if len(data) > room:
        bare = replace(event, logs="")
        size = len(encode(bare))
        if size > room - len(CUT) and instance is not None:
            bare = replace(bare, instance=_shortened(instance))
            size = len(encode(bare))
        data = encode(replace(bare, logs=_cut(logs, room - size)))
    return b"%s%s\n\n" % (_HEAD, data)


def _shortened(instance: Instance) -> Instance:
    """Return an instance that fits an event; `GET /instances/{id}` shows all of it."""
    return replace(
        instance,
        meta=Meta(peer=instance.meta.peer),
        url=_cut(instance.url, LONG_FIELD),
        config=_cut(instance.config, LONG_FIELD),
    )


def _cut(text: str, room: int) -> str:
    """Return as much of a text as takes no more than so many bytes of JSON, without the quotes."""

    def size(text: str) -> int:
        return len(encode(text)) - 2

    if size(text) <= room:
        return text
    least, most = 0, min(len(text), room)
    while least < most:
        middle = (least + most + 1) // 2
        if size(text[:middle]) + len(CUT) <= room:
            least = middle
        else:
            most = middle - 1
    return _BROKEN_CODE.sub("", text[:least]) + CUT
