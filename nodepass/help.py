"""What ``--help`` and ``--version`` say, the same for every command."""

from __future__ import annotations

import platform

from nodepass import __version__

URLS = """\
A URL is  server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT[?NAME=VALUE&...]

  server   TUNNEL is where clients connect, TARGET what is exposed or reached
  client   TUNNEL is the server, or the address to listen on (single-end);
           TARGET is what is exposed or reached

  An empty host means every interface, or this host where it is dialed. IPv6
  addresses stand in brackets. A URL with & or ? needs quotes in most shells.

Parameters:
  name   values                             default     used by
  log    none debug info warn error event   info        server client
  tls    0 plain, 1 self-signed, 2 files    0           server client
                                            (client: what the server says)
  crt    PEM file, with tls=2               -           server
  key    PEM file, with tls=2               -           server
  ca     PEM file of private roots          system's    client
  min    idle links the pool keeps          8           client
  max    most idle links per client         1024        server
  mode   server: 0 auto 1 reverse 2 forward 0           server client
         client: 0 auto 1 single-end 2 dual-end
  read   idle timeout: 300ms 30s 5m 1h30m   1h          server client
         0 for none
  rate   Mbit/s per direction, 0 unlimited  0           server client
  slot   most sessions, 0 unlimited         65536       server client
  proxy  1 sends PROXY protocol v1          0           server client
  wire   native or any                      native      server client
"""

KEYS = """\
Keys:
  A URL without a key takes it from --key-file, else from NODEPASS_KEY.
  "nodepass key" makes one. A key inside a URL leaves the process list when
  nodepass has started, but not the shell's history.
"""

EXAMPLES = """\
Examples:
  reach an inner service from outside (the server's port 8080 to the client's 80):
    nodepass "server://KEY@:10101/:8080?tls=1"
    nodepass "client://KEY@server.example.org:10101/127.0.0.1:80"
  forward a local port, no server needed:
    nodepass "client://127.0.0.1:5432/db.example.org:5432?mode=1"
"""


def version() -> str:
    """Return one line with the versions of nodepass and of what it runs on."""
    return (
        f"nodepass {__version__} ({platform.system()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()})"
    )
