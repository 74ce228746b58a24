"""Texts that clients attach to instances: how long they may be, and how a change meets what was."""

from __future__ import annotations

from .errors import ApiError
from .models import Meta, MetaChange, Peer

__all__ = ["changed_meta", "check_length"]

#: Longest text of any kind that a client may attach to an instance, bytes of UTF-8.
MAX_TEXT = 256

#: Most tags of an instance: its events must stay under 64 KiB.
MAX_TAGS = 64


def check_length(what: str, text: str | None) -> None:
    """Refuse a text that is longer than `MAX_TEXT` bytes of UTF-8."""
    if text is not None and len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
        raise ApiError(400, f"{what} exceeds maximum length {MAX_TEXT}")


def changed_meta(meta: Meta, change: MetaChange | None) -> Meta:
    """Return ``meta`` with a new peer or new tags, whichever the change has.

    :raises ApiError: a text is too long.
    """
    if change is None:
        return meta
    peer, tags = meta.peer, meta.tags
    if change.peer is not None:
        for name in ("sid", "type", "alias"):
            check_length(f"Meta peer.{name}", getattr(change.peer, name))
        peer = Peer(
            sid=change.peer.sid or "", type=change.peer.type or "", alias=change.peer.alias or ""
        )
    if change.tags is not None:
        for name, value in change.tags.items():
            check_length("Meta tag key", name)
            check_length("Meta tag value", value)
        if len(change.tags) > MAX_TAGS:
            raise ApiError(400, f"Meta tags exceed maximum number {MAX_TAGS}")
        tags = {name: value for name, value in change.tags.items() if value is not None}
    return Meta(peer=peer, tags=tags)
