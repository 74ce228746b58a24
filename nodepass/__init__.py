"""nodepass: a universal TCP and UDP tunnel on Twisted.

From Python a tunnel is a Twisted service::

    from nodepass import makeService

    tunnel = makeService("client://:8080/example.org:80?mode=1")
    tunnel.setServiceParent(application)

The public names are those of ``__all__``. They are imported when first used: ``import nodepass``
neither imports nor installs a reactor, so that a program can still choose its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "2.0.0a1"

if TYPE_CHECKING:
    from nodepass.config import ClientConfig, MasterConfig, ServerConfig, parse_url
    from nodepass.errors import ConfigError, FatalError, NodePassError, PeerError
    from nodepass.master.service import MasterService
    from nodepass.master.settings import MasterSettings
    from nodepass.meter import Stats
    from nodepass.service import RoleService, makeService
    from nodepass.tuning import Tuning

_HOMES = {
    "ClientConfig": "nodepass.config",
    "ConfigError": "nodepass.errors",
    "FatalError": "nodepass.errors",
    "MasterConfig": "nodepass.config",
    "MasterService": "nodepass.master.service",
    "MasterSettings": "nodepass.master.settings",
    "NodePassError": "nodepass.errors",
    "PeerError": "nodepass.errors",
    "RoleService": "nodepass.service",
    "ServerConfig": "nodepass.config",
    "Stats": "nodepass.meter",
    "Tuning": "nodepass.tuning",
    "makeService": "nodepass.service",
    "parse_url": "nodepass.config",
}

__all__ = [
    "ClientConfig",
    "ConfigError",
    "FatalError",
    "MasterConfig",
    "MasterService",
    "MasterSettings",
    "NodePassError",
    "PeerError",
    "RoleService",
    "ServerConfig",
    "Stats",
    "Tuning",
    "__version__",
    "makeService",
    "parse_url",
]


def __getattr__(name: str) -> object:
    """Import the module that defines public ``name`` (PEP 562) and remember the result."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
