"""Which role a configuration asks for, in how many processes.

A role is imported where it is made: each needs what the others do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from attrs import evolve
from twisted.internet.error import CannotListenError

from nodepass.config import ClientConfig, Mode, ServerConfig, unused_by_forwarder
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.tuning import Tuning

if TYPE_CHECKING:
    from nodepass.logs import Log
    from nodepass.reactor import IReactor
    from nodepass.workers.crew import Crew

    from .forward import ForwardRole
    from .role import Role

__all__ = ["make_role", "settle_workers"]


def settle_workers(
    config: ServerConfig | ClientConfig, reactor: IReactor, log: Log
) -> ServerConfig | ClientConfig:
    """Return the configuration with the number of processes that there will be."""
    if config.workers == 1:
        return config
    from nodepass.workers.choice import worker_count

    count, missing = worker_count(config, reactor)
    if missing:
        log.warn("parameter workers: one process is used, as {why}", why=missing)
    return evolve(config, workers=count)


def make_role(
    config: ServerConfig | ClientConfig,
    tuning: Tuning,
    reactor: IReactor,
    health: Health,
    *,
    ready: Callable[[], None],
    failed: Callable[[FatalError], None],
) -> Role | Crew:
    """Make the role, or what stands in its place where there are several processes.

    :param config: from `settle_workers`.
    :param ready, failed: as `Role` has them.
    :raises ConfigError: a file that it needs can't be used.
    """

    def make(config: ServerConfig | ClientConfig) -> Role | Crew:
        if isinstance(config.workers, int) and config.workers > 1:
            from nodepass.workers.crew import Crew

            count = config.workers
            return Crew(config, tuning, reactor, health, count=count, ready=ready, failed=failed)
        if isinstance(config, ServerConfig):
            from .server import ServerRole

            return ServerRole(config, tuning, reactor, health, ready=ready, failed=failed)
        if config.mode is Mode.ONE:
            from .forward import ForwardRole

            return ForwardRole(config, tuning, reactor, health, ready=ready, failed=failed)
        from .client import ClientRole

        return ClientRole(config, tuning, reactor, health, ready=ready, failed=failed)

    if isinstance(config, ServerConfig) or config.mode is not Mode.AUTO:
        return make(config)
    forward = cast("ForwardRole | Crew", make(evolve(config, mode=Mode.ONE)))
    if _can_forward(forward, config, health.log):
        return forward
    return make(evolve(config, mode=Mode.TWO))


def _can_forward(forward: ForwardRole | Crew, config: ClientConfig, log: Log) -> bool:
    """Whether a client whose mode is to be decided is a plain forwarder."""
    tunnel = config.tunnel
    try:
        forward.visitors.bind()
    except CannotListenError:
        log.info("mode=0: {tunnel} can't be bound here, so this client is mode=2", tunnel=tunnel)
        return False
    log.info("mode=0: {tunnel} can be bound here, so this client is mode=1", tunnel=tunnel)
    for warning in unused_by_forwarder(config, config.key):
        log.warn("{warning}", warning=warning)
    return True
