"""Moving bytes: streams, sessions that join two of them, and the sockets beneath.

Sessions and flows know nothing of links, peers or roles: a data link is one more stream or channel
to them. `portable` has all of it on Twisted's transports; `engine` does the same faster on sockets
of its own, on Linux.
"""
