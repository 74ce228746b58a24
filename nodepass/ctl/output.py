"""Where a command writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

import msgspec

from .show import plain_json

__all__ = ["Output"]

_HOME_AND_CLEAR = "\x1b[H\x1b[J"


class Output:
    """Writes lines, at once, so that a program behind a pipe sees each when it is there."""

    def __init__(self, stream: TextIO | None = None, notes: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._notes = notes or sys.stderr

    def line(self, text: str) -> None:
        """Write a line of the result."""
        self.text(text + "\n")

    def text(self, text: str) -> None:
        """Write a piece of the result.

        :raises BrokenPipeError: nobody reads it any more.
        """
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()

    def json(self, value: object) -> None:
        """Write a record, or a list of them, as one line of JSON."""
        self.line(plain_json(msgspec.json.encode(value).decode()))

    def note(self, text: str) -> None:
        """Tell the user something that is not the result."""
        print(f"nodepass: {text}", file=self._notes, flush=True)

    def width(self) -> int | None:
        """How many characters a line has room for; None where that is no matter."""
        return shutil.get_terminal_size().columns if self._stream.isatty() else None

    def clear(self) -> None:
        """Make room for a new picture; where that can't be, an empty line ends the one before."""
        self.text(_HOME_AND_CLEAR if self._stream.isatty() else "\n")
