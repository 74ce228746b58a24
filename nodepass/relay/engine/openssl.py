"""OpenSSL's own functions, as pyOpenSSL itself calls them.

pyOpenSSL makes and proves connections here, and then would be in the way: for a message of 300
bytes each way its `send` and `recv_into` take 3.7 us more than the functions beneath them, mostly
for an exception when nothing is left to read; for bulk it copies once more (0.87 against 0.58 CPU
seconds per GB). Nor can a connection that began in memory go on with a socket there.

These names are not part of its interface. They are those that it could not do without, and have
been the same for more than ten years; where one is missing, importing this module fails, and data
links with TLS stay on Twisted's transports, which is logged.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

__all__ = [
    "WANT_READ",
    "WANT_WRITE",
    "ZERO_RETURN",
    "address_of_buffer",
    "clear_errors",
    "go_on_with_socket",
    "outcome_of",
    "ssl_read",
    "ssl_shutdown",
    "ssl_write",
]

#: ``SSL_read(connection, address, most)``: bytes read, or a number that `outcome_of` explains. It
#: takes from the socket no more than the record that it is about.
ssl_read = lib.SSL_read
#: ``SSL_write(connection, address, size)``: bytes of one record sent, or a number that
#: `outcome_of` explains. One that was not sent whole is to be offered again, perhaps with more
#: behind it.
ssl_write = lib.SSL_write
#: ``SSL_shutdown(connection)``: sends TLS's own end.
ssl_shutdown = lib.SSL_shutdown
#: ``SSL_get_error(connection, number)``: what a number that is not positive stands for.
outcome_of = lib.SSL_get_error
#: To be called when the outcome was an error: the list of errors is one for all connections.
clear_errors = lib.ERR_clear_error
#: The address of a buffer's first byte, which holds the buffer.
address_of_buffer = ffi.from_buffer

_set_fd = lib.SSL_set_fd

WANT_READ: int = lib.SSL_ERROR_WANT_READ
WANT_WRITE: int = lib.SSL_ERROR_WANT_WRITE
ZERO_RETURN: int = lib.SSL_ERROR_ZERO_RETURN


def go_on_with_socket(tls: SSL.Connection, fd: int) -> Any:
    """Let a connection whose handshake went through memory go on with a socket.

    What it was given must have been read until it wanted more, and what it had to send have been
    taken: the memory that was in between is freed here.

    :param fd: of a non-blocking socket, which remains the caller's to close.
    :returns: the connection, for the functions above; valid as long as `tls`.
    """
    inner: Any = tls
    connection = inner._ssl
    _set_fd(connection, fd)
    inner._into_ssl = inner._from_ssl = None
    # What judged the certificate is not needed any more, nor is Twisted's transport, which would be
    # kept with all that it knows. The callback and its helper know each other.
    helper = inner._verify_helper
    tls.set_verify(tls.get_verify_mode())
    if helper is not None:
        helper.callback = None
    tls.set_app_data(None)
    return connection
