"""A master's API as methods."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.task import deferLater
from twisted.web.iweb import IAgent

from .address import parse_address
from .causes import unreadable
from .errors import (
    BadAnswer,
    Cut,
    MasterError,
    MissingFeature,
    NotFound,
    ServerTrouble,
    Silent,
    Unreachable,
)
from .http import Body, Web
from .models import (
    MASTER_ID,
    Event,
    Info,
    Instance,
    Meta,
    Tcping,
    Traffic,
)
from .reading import read, read_list
from .sse import ServerSentEvent, SSEError, SSEParser
from .trust import Trust

__all__ = ["MasterClient"]

#: Seconds without a byte of an event stream after which it counts as lost, where the master has
#: shown, by a comment or an id, that it sends a comment after 15 s: three of them.
STREAM_SILENCE = 45.0
#: Seconds before a lost event stream is asked for again, where the master does not say.
RECONNECT_AFTER = 3.0
#: Least seconds between two tries, whatever the master says: a 0 would keep both busy.
RECONNECT_AT_LEAST = 1.0
#: Most seconds between two tries: soon enough for somebody who watches.
RECONNECT_AT_MOST = 30.0
#: Most bytes of a line of a followed log; masters cut theirs earlier.
MOST_LINE = 1 << 20

T = TypeVar("T", bound=msgspec.Struct)


class MasterClient:
    """Talks to one master: this program's own or one of the Go implementation, 1.x and 2.x.

    All methods raise `nodepass.client.MasterError`, whose message is one line.

    :param address: ``http://HOST:PORT``, ``https://HOST:PORT`` or, for a Unix socket, its path in
        ``unix:%2Frun%2Fapi.sock``; with the API's prefix if that is not ``/api``.
    :param key: the API key.
    :param trust: what is asked of the certificate; chain and name unless given.
    :param reactor: a reactor of Twisted's to run on; the global one unless given.
    :param agent: takes the requests instead of connections of its own.
    :raises nodepass.ConfigError: the address, the key or what ``trust`` names can't be used.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        trust: Trust | None = None,
        reactor: Any = None,
        agent: IAgent | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor: Any = reactor
        self._web = Web(parse_address(address), key, trust or Trust(), reactor, agent)

    @property
    def key(self) -> str:
        """The API key; a new one after `rotate_key`."""
        return self._web.key

    async def close(self) -> None:
        """Close the connections that wait for another request."""
        await self._web.close()

    # Instances

    async def list(self) -> list[Instance]:
        """Return all instances by creation, without the one that stands for the API key."""
        body, kind = await self._web.request("GET", "instances")
        try:
            instances = read_list(body, Instance)
        except msgspec.DecodeError as error:
            raise unreadable(self._web.address, kind, error) from None
        return [instance for instance in instances if instance.id != MASTER_ID]

    async def get(self, id: str) -> Instance:
        """Return an instance."""
        return await self._ask(Instance, "GET", "instances", id)

    async def create(
        self, url: str, alias: str | None = None, *, restart: bool | None = None
    ) -> Instance:
        """Make an instance of a tunnel's URL. It is started at once, in the background.

        :param restart: whether it starts with the master. Masters of other implementations take no
            notice: compare the instance that is returned.
        """
        body = _given(url=url, alias=alias, restart=restart)
        return await self._ask(Instance, "POST", "instances", body=body)

    async def restore(
        self,
        url: str,
        *,
        alias: str | None = None,
        id: str | None = None,
        restart: bool | None = None,
        meta: Meta | None = None,
        totals: Mapping[str, int] | None = None,
    ) -> Instance:
        """Make an instance that was one elsewhere.

        Masters of other implementations take notice of ``url`` and ``alias`` alone: compare the
        instance that is returned.

        :param id: used where it is free.
        :param totals: ``tcprx``, ``tcptx``, ``udprx`` and ``udptx``, bytes.
        """
        body = _given(url=url, alias=alias, id=id, restart=restart, meta=meta, totals=totals)
        return await self._ask(Instance, "POST", "instances", body=body)

    async def change(
        self,
        id: str,
        *,
        alias: str | None = None,
        action: str | None = None,
        restart: bool | None = None,
        peer: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Instance:
        """Change an instance: all that is given, or nothing.

        :param action: ``start``, ``stop``, ``restart`` or ``reset``.
        :param restart: whether it starts with the master.
        :param peer: ``sid``, ``type`` and ``alias`` of the other end; what is missing becomes
            empty.
        :param tags: they replace all tags.
        """
        meta = _given(peer=peer, tags=tags)
        body = _given(alias=alias, action=action, restart=restart, meta=meta or None)
        return await self._ask(Instance, "PATCH", "instances", id, body=body)

    async def start(self, id: str) -> Instance:
        """Start an instance."""
        return await self.change(id, action="start")

    async def stop(self, id: str) -> Instance:
        """Stop an instance."""
        return await self.change(id, action="stop")

    async def restart(self, id: str) -> Instance:
        """Stop and start an instance."""
        return await self.change(id, action="restart")

    async def reset(self, id: str) -> Instance:
        """Set the byte counters of an instance to 0."""
        return await self.change(id, action="reset")

    async def replace(self, id: str, url: str) -> Instance:
        """Give an instance another URL, and start it with that."""
        return await self._ask(Instance, "PUT", "instances", id, body={"url": url})

    async def delete(self, id: str) -> None:
        """Stop an instance and forget it."""
        await self._web.request("DELETE", "instances", id)

    async def traffic(
        self,
        id: str,
        *,
        since: int | None = None,
        until: int | None = None,
        step: int | None = None,
    ) -> Traffic:
        """Return how many bytes moved when.

        :param since: Unix time, seconds; likewise ``until``.
        :param step: seconds that each point stands for.
        """
        given = _given(since=since, until=until, step=step)
        params = {name: str(value) for name, value in given.items()}
        try:
            return await self._ask(Traffic, "GET", "instances", id, "traffic", params=params)
        except NotFound:
            raise await self._missing(id, "traffic history") from None

    async def logs(self, id: str, lines: int | None = None) -> Sequence[str]:
        """Return the latest lines of an instance's log, the newest last."""
        params = {} if lines is None else {"lines": str(lines)}
        try:
            body, _ = await self._web.request("GET", "instances", id, "logs", params=params)
        except NotFound:
            raise await self._missing(id, "logs") from None
        return body.decode("utf-8", "replace").splitlines()

    async def follow(self, id: str, lines: int | None = None) -> AsyncGenerator[str, None]:
        """Yield the latest lines of an instance's log, and each new one as it comes.

        It ends when the master ends it, and raises `Cut` when the connection is lost.
        """
        params = {"follow": "1"} if lines is None else {"follow": "1", "lines": str(lines)}
        try:
            body = await self._web.stream("instances", id, "logs", params=params)
        except NotFound:
            raise await self._missing(id, "logs") from None
        try:
            rest = b""
            while data := await body.read():
                *complete, rest = (rest + data).split(b"\n")
                for line in complete:
                    yield line.decode("utf-8", "replace")
                if len(rest) > MOST_LINE:
                    raise BadAnswer(f"{self._web.address}: a log line of more than 1 MiB")
            if rest:
                yield rest.decode("utf-8", "replace")
        finally:
            body.close()

    # The master

    async def info(self) -> Info:
        """Return the figures of the master and its machine."""
        return await self._ask(Info, "GET", "info")

    async def set_alias(self, alias: str) -> Info:
        """Name the master."""
        return await self._ask(Info, "POST", "info", body={"alias": alias})

    async def tcping(self, target: str) -> Tcping:
        """Let the master connect to a target, ``host:port``."""
        return await self._ask(Tcping, "GET", "tcping", params={"target": target})

    async def rotate_key(self) -> str:
        """Have the master make a new key, return it, and use it from now on."""
        answer = await self._ask(
            Instance, "PATCH", "instances", MASTER_ID, body={"action": "restart"}
        )
        self._web.key = answer.url
        return answer.url

    # Events

    async def events(
        self,
        *,
        types: Iterable[str] = (),
        instance: str | None = None,
        resume: bool = True,
        on_loss: Callable[[MasterError, float], object] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield events for as long as they are asked for.

        A stream that was lost is asked for again, and goes on where it ended if the master can do
        that; otherwise ``initial`` events tell anew how things stand. Only the first connection,
        and what trying again can't mend, such as a key that is no longer right, raises.

        :param types: only events of these types; all unless given.
        :param instance: only events of the instance of this id, and those of no instance.
        :param resume: False: after a loss begin with ``initial`` events.
        :param on_loss: called at each loss with its cause and the seconds until the next try.
        """
        wanted = frozenset(types)
        # Asked for in any case: a master that sends ids sends comments too, so that its silence
        # shows that the connection is dead.
        params = {"resume": "1"}
        if wanted:
            params["types"] = ",".join(sorted(wanted))
        if instance is not None:
            params["instance"] = instance
        last_id = ""
        base, failures, connected = RECONNECT_AFTER, 0, False
        while True:
            parser = SSEParser(last_id)
            try:
                headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
                if resume and last_id:
                    headers["Last-Event-ID"] = last_id
                body = await self._web.stream("events", params=params, headers=headers)
                connected = True
                try:
                    if not body.content_type.startswith("text/event-stream"):
                        raise unreadable(
                            self._web.address, body.content_type, ValueError("no event stream")
                        )
                    async for sent in self._parsed(body, parser):
                        failures = 0
                        event = self._event(sent)
                        # Masters that don't filter send all.
                        if _fits(event, wanted, instance):
                            yield event
                finally:
                    body.close()
                    last_id = parser.last_id
                    if parser.retry is not None:
                        base = max(parser.retry / 1000, RECONNECT_AT_LEAST)
                raise Cut(f"{self._web.address}: the event stream ended")
            except (Cut, Silent, Unreachable, ServerTrouble) as error:
                if not connected:
                    raise
                # The jitter keeps the watchers of a master from coming back all at once.
                delay = min(base * 2 ** min(failures, 10), RECONNECT_AT_MOST)
                delay *= 1 + random.random() / 4
                failures += 1
                if on_loss is not None:
                    on_loss(error, delay)
            await deferLater(self._reactor, delay)

    async def _parsed(self, body: Body, parser: SSEParser) -> AsyncGenerator[ServerSentEvent, None]:
        """Yield the events of one stream; a master that has fallen silent ends it."""
        watch = None
        silent = Silent(f"{self._web.address}: the event stream fell silent")
        try:
            while True:
                if parser.comments or parser.last_id:
                    watch = self._reactor.callLater(STREAM_SILENCE, body.fail, silent)
                data = await body.read()
                if watch is not None and watch.active():
                    watch.cancel()
                if not data:
                    return
                try:
                    events = parser.feed(data)
                except SSEError as error:
                    raise BadAnswer(f"{self._web.address}: event stream: {error}") from None
                for event in events:
                    yield event
        finally:
            if watch is not None and watch.active():
                watch.cancel()

    def _event(self, sent: ServerSentEvent) -> Event:
        try:
            return read(sent.data, Event)
        except msgspec.DecodeError as error:
            raise unreadable(self._web.address, "", error) from None

    async def _ask(
        self,
        kind: type[T],
        method: str,
        *parts: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> T:
        answer, content_type = await self._web.request(method, *parts, params=params, body=body)
        try:
            return read(answer, kind)
        except msgspec.DecodeError as error:
            raise unreadable(self._web.address, content_type, error) from None

    async def _missing(self, id: str, what: str) -> MasterError:
        """Say why there is nothing below an instance: no such instance, or no such feature."""
        await self.get(id)
        return MissingFeature(
            f"{self._web.address}: this master has no {what}: it is too old, or another "
            "implementation; nodepass ctl info shows its version"
        )


def _given(**members: Any) -> dict[str, Any]:
    """Members that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def _fits(event: Event, types: frozenset[str], instance: str | None) -> bool:
    if types and event.type not in types:
        return False
    return instance is None or event.instance is None or event.instance.id == instance
