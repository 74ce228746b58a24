"""``export`` and ``import``: a master's instances into a document, and from one."""

from __future__ import annotations

import sys

import msgspec

from nodepass.client import Refused
from nodepass.config import parse_role_url
from nodepass.errors import ConfigError
from nodepass.logs import mask, printable

from . import show
from .contexts import write_file
from .run import Run
from .transfer import Step, document, dump, load, plan

__all__ = ["export", "import_document", "url_trouble"]

#: Most bytes of a document that is imported, far beyond what a master's instances take.
MOST_DOCUMENT = 64 << 20


async def export(run: Run) -> None:
    """``export``."""
    path = run.options.output
    form = run.options.format or ("json" if path and path.endswith(".json") else "toml")
    instances = await run.master.list()
    text = dump(document(instances), form)
    if path is None:
        run.out.text(text)
        return
    write_file(path, text)
    run.out.note(
        f"{path}: instances: {len(instances)}; keys are in it, so it is readable for you alone"
    )


async def import_document(run: Run) -> None:
    """``import``."""
    name = run.options.file
    wanted = load(_read(name), name).instances
    existing = await run.master.list()
    counts = {"+": 0, "~": 0, "=": 0}
    for number, step in enumerate(plan(existing, wanted), 1):
        entry = step.entry
        name = step.id or entry.id or entry.alias or f"entry {number}, {mask(entry.url)}"
        _print_step(run, step)
        trouble = url_trouble(entry.url) if step.puts_url else None
        if trouble is None and not run.options.dry_run:
            try:
                await _carry_out(run, step)
            except Refused as error:
                trouble = str(error)
        if trouble is not None:
            run.failed(f"{printable(name)}: {trouble}")
            continue
        counts[step.sign] += 1
    if run.options.dry_run:
        words = ("to create", "to change", "the same")
    else:
        words = ("created", "changed", "the same")
    summary = zip(counts.values(), words, strict=True)
    run.out.note(", ".join(f"{count} {word}" for count, word in summary))


def _read(name: str) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MOST_DOCUMENT)
        else:
            with open(name, "rb") as file:
                data = file.read(MOST_DOCUMENT)
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file") from None


def _print_step(run: Run, step: Step) -> None:
    def shown(text: str) -> str:
        return show.cell(text if run.options.show_keys else mask(text))

    entry = step.entry
    alias = f" ({printable(entry.alias)})" if entry.alias else ""
    head = f"{step.sign} {printable(step.id or entry.id or '(new id)')}{alias}"
    run.out.line(f"{head} {shown(entry.url)}" if step.sign == "+" else head)
    for name, old, new in step.changes:
        run.out.line(f"    {printable(name)}: {shown(old)} -> {shown(new)}")


async def _carry_out(run: Run, step: Step) -> None:
    """Do what a step says, and note what the master could not keep."""
    entry = step.entry
    if step.id is None:
        await _restore(run, step)
        return
    changed = {name for name, _, _ in step.changes}
    if changed - {"url"}:
        await run.master.change(
            step.id,
            alias=entry.alias if "alias" in changed else None,
            restart=entry.restart,
            peer=msgspec.to_builtins(entry.meta.peer),
            tags=entry.meta.tags,
        )
    if "url" in changed:
        await run.master.replace(step.id, entry.url)


async def _restore(run: Run, step: Step) -> None:
    entry = step.entry
    totals = {name: getattr(entry.totals, name) for name in ("tcprx", "tcptx", "udprx", "udptx")}
    made = await run.master.restore(
        entry.url,
        alias=entry.alias or None,
        id=entry.id or None,
        restart=entry.restart,
        meta=entry.meta,
        totals=totals,
    )
    # Masters of other implementations take notice of URL and alias alone.
    restart = None if entry.restart in (None, made.restart) else entry.restart
    meta = entry.meta if made.meta != entry.meta else None
    stop = "stop" if entry.status == "stopped" else None
    if restart is not None or meta is not None or stop is not None:
        made = await run.master.change(
            made.id,
            action=stop,
            restart=restart,
            peer=None if meta is None else msgspec.to_builtins(meta.peer),
            tags=None if meta is None else meta.tags,
        )
    lost = []
    if entry.id and made.id != entry.id:
        lost.append(f"its id is {printable(made.id)}")
    if made.meta != entry.meta:
        lost.append("tags and peer were not kept")
    if any(getattr(made, name) < total for name, total in totals.items()):
        lost.append("totals were not kept")
    if lost:
        run.out.line(f"    {', '.join(lost)}")


def url_trouble(url: str) -> str | None:
    """Why a tunnel's URL can't be used; None where it can."""
    try:
        parse_role_url(url)
    except ConfigError as error:
        return str(error)
    return None
