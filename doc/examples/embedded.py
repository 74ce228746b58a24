"""A forwarder inside a program: start it, learn its port, see it fail, stop it."""

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import react

from nodepass import FatalError, makeService


async def main(reactor):
    tunnel = makeService("client://127.0.0.1:0/example.org:80?mode=1&log=warn", reactor=reactor)
    tunnel.whenFailed().addCallback(lambda error: print(f"given up: {error}"))
    tunnel.startService()
    try:
        await tunnel.whenReady()
    except FatalError:
        return  # said above
    print(f"listening on {tunnel.visitor_address}")
    print(tunnel.stats)
    await maybeDeferred(tunnel.stopService)


if __name__ == "__main__":
    react(lambda reactor: main(reactor))
