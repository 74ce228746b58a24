"""The commands: each asks a master for something and prints what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.web.http import CONFLICT

from nodepass.client import Cut, MasterClient, MasterError, NotFound, Refused
from nodepass.client.models import EVENT_TYPES, MASTER_ID, Event, Instance
from nodepass.errors import ConfigError
from nodepass.logs import printable

from . import show
from .contexts import KEY_VARIABLE, replace_key
from .moving import export, import_document, url_trouble
from .run import Run

__all__ = ["COMMANDS", "Run"]

#: Seconds between two pictures of a list that is watched: checkpoints of many instances come at
#: once, and one picture shows them all.
REDRAW_AFTER = 0.3


async def list_instances(run: Run) -> None:
    """``list``."""
    if run.options.watch:
        await _watch(run)
        return
    _print_list(run, await run.master.list())


def _print_list(run: Run, instances: Sequence[Instance]) -> None:
    if run.options.json:
        run.out.json(instances)
        return
    for line in show.instance_table(
        instances, show_keys=run.options.show_keys, width=run.out.width()
    ):
        run.out.line(line)


async def _watch(run: Run) -> None:
    """Keep a picture of all instances by the events about them, and draw it when it changes."""
    picture: dict[str, Instance] = {}
    reading = Deferred.fromCoroutine(_keep(run, picture))
    drawn: list[Instance] | None = None

    def draw() -> None:
        nonlocal drawn
        if drawn != (now := list(picture.values())):
            drawn = now
            if not run.options.json:
                run.out.clear()
            _print_list(run, now)

    drawing = LoopingCall(draw)
    drawing.clock = run.reactor
    failures: list[Failure] = []

    def broken(failure: Failure) -> None:
        failures.append(failure)
        reading.cancel()

    drawing.start(REDRAW_AFTER, now=False).addErrback(broken)
    try:
        await reading
    except CancelledError:
        # Nobody reads the picture any more, say.
        for failure in failures:
            failure.raiseException()
        raise
    finally:
        if drawing.running:
            drawing.stop()


async def _keep(run: Run, picture: dict[str, Instance]) -> None:
    afresh = False

    def lost(error: MasterError, delay: float) -> None:
        nonlocal afresh
        afresh = True
        run.out.note(f"{error}; trying again in {delay:.0f} s")

    # What happened while the stream was lost is told by "initial" events alone.
    events = run.master.events(types=_CHANGES, resume=False, on_loss=lost)
    async with aclosing(events):
        async for event in events:
            if event.type == "initial" and afresh:
                picture.clear()
                afresh = False
            one = event.instance
            if one is None or one.id == MASTER_ID:
                continue
            if event.type == "delete":
                picture.pop(one.id, None)
            else:
                picture[one.id] = one


_CHANGES = ("initial", "create", "update", "delete", "shutdown")


async def create(run: Run) -> None:
    """``create``."""
    restart = False if run.options.no_restart else None
    try:
        made = await run.master.create(run.options.url, run.options.alias, restart=restart)
    except Refused as error:
        raise _explained(error, run.options.url) from None
    # First of all: it is there now, whatever becomes of the rest.
    run.out.line(printable(made.id))
    # Masters of other implementations take notice of URL and alias alone.
    if restart is not None and made.restart != restart:
        await run.master.change(made.id, restart=restart)


def _explained(error: Refused, url: str) -> Refused:
    """A refusal of a URL, with what is accepted where the master does not say."""
    if "Invalid URL" not in error.reason:
        return error
    cause = url_trouble(url)
    return error if cause is None else Refused(f"{error}: {cause}", error.status, error.reason)


def _each(
    action: Callable[[MasterClient, str], Awaitable[object]], done: str, already: str = ""
) -> Any:
    """A command that does the same to several instances.

    :param already: the status that it brings about.
    """

    async def command(run: Run) -> None:
        instances = await run.master.list()
        # All names first: a misspelt one must not leave half of the work done.
        found = [await run.find(name, instances) for name in run.options.ids]
        for one in found:
            try:
                await action(run.master, one.id)
            except Refused as error:
                run.failed(f"{show.named(one)}: {error}")
            else:
                # It was asked in any case: what is shown as stopped may be about to start.
                same = one.status == already
                run.out.line(f"{show.named(one)} {f'is {already} already' if same else done}")

    return command


async def edit(run: Run) -> None:
    """``edit``."""
    options = run.options
    add = _pairs("--tag", options.tag)
    peer = _pairs("--peer", options.peer)
    for name in peer:
        if name not in ("sid", "type", "alias"):
            raise ConfigError(f"--peer {printable(name)}: accepted: sid, type or alias")
    if options.alias == "":
        raise ConfigError("--alias: a master can change an alias, but not take it away")
    drop = options.untag or []
    given = (options.url, options.alias, options.restart, options.tag, options.peer, options.untag)
    if all(value is None for value in given):
        raise ConfigError("edit: nothing to change; see: nodepass ctl edit --help")
    one = await run.find(options.id)
    kept = {name: value for name, value in one.meta.tags.items() if name not in drop}
    old = one.meta.peer
    others = (options.alias, options.restart) != (None, None) or bool(add or drop or peer)
    if others:
        await run.master.change(
            one.id,
            alias=options.alias,
            restart=options.restart,
            tags={**kept, **add} if add or drop else None,
            peer={"sid": old.sid, "type": old.type, "alias": old.alias, **peer} if peer else None,
        )
    if options.url is not None:
        try:
            await run.master.replace(one.id, options.url)
        except Refused as error:
            if error.status != CONFLICT:
                raise _explained(error, options.url) from None
            # A master's word for a change that would be none.
            run.out.note(f"{show.named(one)}: that is its URL already")
            if not others:
                return
    run.out.line(f"{show.named(one)} changed")


def _pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise ConfigError(f"{option} {printable(text)}: accepted: NAME=VALUE")
        pairs[name] = value
    return pairs


async def logs(run: Run) -> None:
    """``logs``."""
    one = await run.find(run.options.id)
    if not run.options.follow:
        for line in await run.master.logs(one.id, run.options.lines):
            run.out.line(show.clean_line(line))
        return
    lines = run.master.follow(one.id, run.options.lines)
    with suppress(Cut):
        async with aclosing(lines):
            async for line in lines:
                run.out.line(show.clean_line(line))
    raise await _why_it_ended(run, one)


async def _why_it_ended(run: Run, one: Instance) -> MasterError:
    """Ask why a log goes on no longer; the stream itself does not say."""
    try:
        await run.master.get(one.id)
    except NotFound:
        return MasterError(f"{show.named(one)}: it was deleted, and its log with it")
    except MasterError as error:
        return MasterError(f"{show.named(one)}: its log broke off: {error}")
    return MasterError(
        f"{show.named(one)}: its log broke off, but the master is there; the same command follows "
        "it again"
    )


async def traffic(run: Run) -> None:
    """``traffic``."""
    options = run.options
    one = await run.find(options.id)
    since = max(0, int(run.reactor.seconds()) - options.since)
    found = await run.master.traffic(one.id, since=since, step=options.step)
    if options.json:
        run.out.json(found)
        return
    for line in show.traffic_table(found):
        run.out.line(line)
    if not found.points:
        run.out.note(f"{show.named(one)}: no traffic in this time")


async def print_events(run: Run) -> None:
    """``events``."""
    types = [name.strip() for name in (run.options.types or "").split(",") if name.strip()]
    for name in types:
        if name not in EVENT_TYPES:
            raise ConfigError(f"--types {printable(name)}: accepted: {', '.join(EVENT_TYPES)}")
    id = None if run.options.id is None else (await run.find(run.options.id)).id

    def lost(error: MasterError, delay: float) -> None:
        run.out.note(f"{error}; trying again in {delay:.0f} s")

    events = run.master.events(types=types, instance=id, on_loss=lost)
    async with aclosing(events):
        async for event in events:
            if run.options.json:
                run.out.json(_without_api_key(event))
            else:
                run.out.line(show.event_line(event, show_keys=run.options.show_keys))


def _without_api_key(event: Event) -> Event:
    """An event about the instance that stands for the API key, without it."""
    if event.instance is None or event.instance.id != MASTER_ID:
        return event
    return msgspec.structs.replace(event, instance=msgspec.structs.replace(event.instance, url=""))


async def info(run: Run) -> None:
    """``info``."""
    found = await run.master.info()
    if run.options.json:
        run.out.json(found)
        return
    for line in show.info_lines(found):
        run.out.line(line)


async def rotate_key(run: Run) -> None:
    """``key rotate``."""
    new = await run.master.rotate_key()
    # First of all: nobody else knows it.
    run.out.line(printable(new))
    target, options = run.target, run.options
    if target.contexts is not None:
        try:
            names = replace_key(target.contexts, target.key, new)
        except ConfigError as error:
            run.failed(f"{error}; the old key is void: put the new one there, {target.key_from}")
        else:
            run.out.note(f"the old key is void; the new one is in {target.contexts}: {names}")
    elif options.key is None and options.key_file is not None:
        file = shlex.quote(options.key_file)
        run.out.note(f"the old key is void; now: (umask 077; echo NEW_KEY > {file})")
    elif options.key is None:
        run.out.note(f"the old key is void; now: export {KEY_VARIABLE}=NEW_KEY")
    else:
        run.out.note("the old key is void; from now on: --key NEW_KEY")


#: What each command does.
COMMANDS: dict[str, Callable[[Run], Awaitable[None]]] = {
    "list": list_instances,
    "create": create,
    "start": _each(MasterClient.start, "starting", "running"),
    "stop": _each(MasterClient.stop, "stopping", "stopped"),
    "restart": _each(MasterClient.restart, "restarting"),
    "reset": _each(MasterClient.reset, "reset"),
    "delete": _each(MasterClient.delete, "deleted"),
    "edit": edit,
    "logs": logs,
    "traffic": traffic,
    "events": print_events,
    "info": info,
    "export": export,
    "import": import_document,
    "key": rotate_key,
}
