"""What the API answers with instead of what was asked for."""

from __future__ import annotations

from nodepass.errors import NodePassError

__all__ = ["ApiError"]


class ApiError(NodePassError):
    """A request that is refused.

    :ivar status: the status of the answer, whose body says ``str(error)``.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
