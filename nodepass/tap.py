"""``twistd nodepass URL...`` and saved ``.tap`` files."""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import tempfile
from collections.abc import Sequence

from twisted.application.service import Application, IServiceCollection
from twisted.persisted.sob import IPersistable
from twisted.python import usage
from zope.interface import implementer

from nodepass import help
from nodepass.config import Config, parse_url
from nodepass.errors import ConfigError, NodePassError
from nodepass.keys import outside_key
from nodepass.process import RoleGroup, hide_keys
from nodepass.reactor import steady_clock

__all__ = ["Options", "makeService", "write_tap"]

# The newest that the oldest Python we support writes; a .tap then moves between all of them.
_PICKLE_PROTOCOL = 5


def _roles(configs: Sequence[Config]) -> TwistdRoles:
    # Not at the top: it takes its time, and --help does without.
    from nodepass.service import makeService as make_role

    return TwistdRoles([make_role(config) for config in configs])


def _unusable(message: str) -> SystemExit:
    """Print ``message`` as the one line that says what was wrong; returns what to raise."""
    print(f"nodepass: {message}", file=sys.stderr)
    return SystemExit(2)


class Options(usage.Options):
    """The command line of ``twistd nodepass``; ``configs`` holds the URLs' configurations."""

    # twistd puts "Usage: twistd [options] nodepass" in front.
    synopsis = "[--key-file FILE] URL [URL...]"
    longdesc = "Each URL is one tunnel endpoint; several run side by side in one process."

    optParameters = [
        ["key-file", "k", None, "File whose only line is the key, for URLs without one."],
    ]
    compData = usage.Completions(optActions={"key-file": usage.CompleteFiles()})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.urls: tuple[str, ...] = ()
        self.configs: list[Config] = []

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the command line; one that can't be used ends the process with status 2.

        Only the cause is printed. To a UsageError ``twistd`` answers with the whole of its own
        help, and the line that matters comes after that.
        """
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            raise _unusable(str(error)) from None

    def parseArgs(self, *urls: str) -> None:
        """Take what is no option: the URLs."""
        self.urls = urls

    def postOptions(self) -> None:
        """Parse the URLs, now that ``--key-file`` is known.

        :raises usage.UsageError: there is no URL, or one of them or the key file can't be used.
        """
        if not self.urls:
            raise usage.UsageError("a URL is needed; see: twistd nodepass --help")
        try:
            key = outside_key(self["key-file"], os.environ)
            self.configs = [parse_url(url, key=key) for url in self.urls]
        except ConfigError as error:
            raise usage.UsageError(str(error)) from None

    def opt_version(self) -> None:
        """Print the version of nodepass and exit."""
        print(help.version())
        raise SystemExit(0)

    def getUsage(self, width: int | None = None) -> str:
        """Return the options' help and the URL's, whose lines ``longdesc`` would run together."""
        return f"{super().getUsage(width)}\n{help.reference()}"


class TwistdRoles(RoleGroup):
    """Roles run by ``twistd``, whose log and exit status they use."""

    def privilegedStartService(self) -> None:
        """Bind what needs privileges, on timers that the time of day does not move."""
        steady_clock(self._get_reactor())
        super().privilegedStartService()

    def failed(self, error: NodePassError) -> None:
        """Log why, stop, and have the process exit with status 1, or 2 for a configuration.

        ``twistd`` has no status for an application that gave up and would exit with 0. Ending the
        interpreter ourselves, as the very last thing it does, leaves the rest of twistd's shutdown,
        such as removing its pidfile, as it is.
        """
        if self.failure is None:
            self.log.critical("{reason}", reason=error)
            atexit.register(_exit_failed, 2 if isinstance(error, ConfigError) else 1)
        super().failed(error)


def _exit_failed(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def makeService(options: Options) -> TwistdRoles:
    """Return the service that ``twistd`` runs: one role per URL, nothing bound yet.

    From here on the process list shows no key.
    """
    hide_keys(os.path.basename(sys.argv[0]), sys.argv[1:])
    try:
        return _roles(options.configs)
    except ConfigError as error:
        raise _unusable(str(error)) from None


@implementer(IPersistable)
class NeverSaved:
    """Stands in for an application's own persistence, so that running a ``.tap`` writes no file.

    At its end ``twistd -f`` saves the application once more, as ``nodepass-shutdown.tap`` with mode
    0644. A tunnel has no state worth keeping, and the copy would show its key to everybody.
    """

    def setStyle(self, style: str) -> None:
        """Nothing is saved, so in no style."""

    def save(
        self, tag: str | None = None, filename: str | None = None, passphrase: str | None = None
    ) -> None:
        """Leave the disk alone."""


def write_tap(configs: Sequence[Config], path: str) -> bool:
    """Save an Application with one role per configuration, for ``twistd -f path``.

    The file holds the keys: only its owner may read it (mode 0600). It is complete or absent, and
    replaces an older one at once.

    :param configs: as from ``parse_url``.
    :param path: the file to write.

    :returns: Whether there was one already.

    :raises ConfigError: a configuration or the path can't be used.
    """
    application = Application("nodepass")
    application.setComponent(IPersistable, NeverSaved())
    IServiceCollection(application).addService(_roles(configs))
    content = pickle.dumps(application, _PICKLE_PROTOCOL)
    try:
        # mkstemp makes the file with mode 0600, before the key is in it.
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".nodepass-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            replaced = os.path.lexists(path)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"-o {path}: {error.strerror or error}") from None
    return replaced
