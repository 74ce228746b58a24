"""Moving bytes: streams, sessions that join two of them, and the sockets beneath.

Nothing in here knows of links, peers or roles. A faster relay replaces `tcp` and `udp` behind
the interface of `stream`.
"""
