"""What ``--help`` and ``--version`` say."""

from __future__ import annotations

import platform
import textwrap

from nodepass import __version__
from nodepass.keys import ENVIRONMENT
from nodepass.master.settings import VARIABLES as MASTER_VARIABLES
from nodepass.parameters import PARAMETERS, Parameter
from nodepass.tuning import PORTABLE, RELAY, VARIABLES

_WIDTH = 80
_INDENT = 11

_URLS = """\
A URL is  server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT[?NAME=VALUE&...]
      or  master://HOST:PORT[/PREFIX][?NAME=VALUE&...]

  server   TUNNEL is where clients connect, TARGET what is exposed or reached
  client   TUNNEL is the server, or the address to listen on (single-end);
           TARGET is what is exposed or reached
  master   runs many of them, as its API is told: HOST:PORT is where that is
           bound, PREFIX its path [default /api]; "nodepass ctl" talks to it

  An empty host means every interface, or this host where it is dialed. IPv6
  addresses stand in brackets. A URL with & or ? needs quotes in most shells.
"""

_KEYS = f"""\
Keys:
  A URL without a key takes it from --key-file, else from {ENVIRONMENT}.
  "nodepass key" makes one. A key inside a URL leaves the process list when
  nodepass has started, but not the shell's history.
"""

EXAMPLES = """\
Examples:
  reach an inner service from outside (the server's port 8080 to the client's 80):
    nodepass "server://KEY@:10101/:8080?mode=1&tls=1"
    nodepass "client://KEY@server.example.org:10101/127.0.0.1:80?mode=2&tls=1"
  forward a local port, no server needed:
    nodepass "client://127.0.0.1:5432/db.example.org:5432?mode=1"
  run many, by API:
    nodepass "master://127.0.0.1:9090"
"""


KEY = f"""\
Usage: nodepass key [--master [--renew]]

  Prints a new random key: 32 letters, digits, "-" and "_". Both nodes of a
  tunnel need the same one, in the URL (KEY@), from --key-file or in
  {ENVIRONMENT}. To keep it in a file:  (umask 077; nodepass key > tunnel.key)

  --master   print the API key of the master whose state NP_STATE names
  --renew    make a new one first; the master must not run meanwhile
"""

TAP = """\
Usage: nodepass tap [--key-file FILE] [-o FILE] URL [URL...]

  Saves the tunnels, keys included, as an application for "twistd -f FILE".
  -o, --output FILE   what to write, readable for you alone; an older one is
                      replaced [default nodepass.tap]
  --key-file FILE     its only line is the key, for URLs without one
  "nodepass --help" says what a URL is.
"""

DEMO = """\
Usage: nodepass demo [--once]

  Runs a web site, a UDP echo and a tunnel to both on 127.0.0.1, visits them
  through it, prints what it measured, and stays up until Ctrl-C.
  --once   end after the measurements; status 0 if all went well, else 1
"""

CTL = """\
Looks after the tunnels of a master over its API. COMMAND --help says more.
"""

CTL_MASTER = """\
The master is named by --api, else by --context, else by NODEPASS_API, else by
the default context. The key: --key, else --key-file, else the context's, else
NODEPASS_API_KEY. Contexts are in nodepass/ctl.toml in $XDG_CONFIG_HOME or
~/.config. Exit status: 0 done, 1 something was not done, 2 bad usage.

Examples:
  nodepass ctl --api https://tunnels.example.org:10101 --key-file key list
  nodepass ctl create --alias web "server://KEY@:10101/:8080?mode=1&tls=1"
  nodepass ctl logs -f web
"""


def version() -> str:
    """Return one line with the versions of nodepass and of what it runs on."""
    return (
        f"nodepass {__version__} ({platform.system()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()})"
    )


def reference() -> str:
    """Return all about URLs, their parameters, keys and the environment."""
    parameters = "".join(_parameter(row) for row in PARAMETERS)
    variables = "".join(_variable(row.name, row.default, row.summary) for row in VARIABLES)
    variables += _variable(RELAY, "the fast one", f"{PORTABLE}: TCP on Twisted's own sockets")
    variables += "".join(_variable(*row) for row in MASTER_VARIABLES)
    return f"{_URLS}\nParameters:\n{parameters}\n{_KEYS}\nEnvironment:\n{variables}"


def _parameter(row: Parameter) -> str:
    who = "" if len(row.cores) > 2 else f"{', '.join(row.cores)}: "
    default = f"; default {row.default}" if row.default else ""
    body = _indented(who + row.summary) + _indented(f"[{row.accepts}{default}]")
    return f"  {row.name:<{_INDENT - 2}}{body.lstrip()}"


def _variable(name: str, default: str, summary: str) -> str:
    # No accepted values here: they are much alike, and a bad one is reported with what is.
    return _indented(f"{name} [default {default}]", 2) + _indented(summary)


def _indented(text: str, by: int = _INDENT) -> str:
    return textwrap.indent(textwrap.fill(text, _WIDTH - by), " " * by) + "\n"
