"""One role in several processes, so that it uses several cores (``workers=N``).

The *parent* is the process that was started: it makes every listening socket and keeps it open,
counts the whole, leases what the whole may do, and says what there is to say. *Workers* are its
children, each with a reactor of its own, and carry all bytes. Visitors reach workers by
``SO_REUSEPORT``: the kernel spreads connections and flows over the sockets of one port. What
arrives at the tunnel port is handed, unread, to the worker that its first bytes name.

Parent: `crew` with its `member`s; its `entrance`, of `ports` and a `door`; the voice of `speaker`.
Worker: `worker`, with the `roles` in it. Between them: `conversation`, which carries `messages`,
and the `board`, memory that both see. Nothing here is imported where ``workers=1``.
"""
