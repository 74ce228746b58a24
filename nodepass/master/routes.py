"""The one table of routes: dispatch, reading of requests, and both descriptions come from it."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from msgspec import Struct

__all__ = ["ROUTES", "Answer", "Query", "Route"]


@frozen
class Query:
    """A parameter behind the ``?``.

    :ivar type: what it is read as: int, str or bool (``0`` or ``1``).
    :ivar default: what counts where it is absent.
    :ivar least, most: bounds of a number.
    """

    name: str
    description: str
    type: type[int] | type[str] | type[bool] = str
    required: bool = False
    default: int | str | bool | None = None
    least: int | None = None
    most: int | None = None


@frozen
class Answer:
    """One thing that a route can answer.

    :ivar model: what the body is, None for a body without form or none at all.
    :ivar media: its Content-Type, empty for an answer without a body.
    :ivar example: a body, shown in the description.
    """

    status: int
    description: str
    model: Any = None
    media: str = "application/json"
    example: Any = None


@frozen
class Route:
    """One method of one path.

    :ivar path: behind ``<prefix>/v1``, such as ``/instances/{id}``.
    :ivar handler: the name of what serves it.
    :ivar summary: a few words.
    :ivar description: what there is to know besides; paragraphs are separated by an empty line.
    :ivar request: what the body is read as.
    :ivar answers: what it can answer, but for the refusals that every route has in common.
    :ivar protected: whether it asks for the API key.
    """

    method: str
    path: str
    handler: str
    summary: str
    description: str = ""
    request: type[Struct] | None = None
    query: tuple[Query, ...] = ()
    answers: tuple[Answer, ...] = ()
    protected: bool = True


#: Every route, in the order of the reference.
ROUTES: tuple[Route, ...] = ()
