"""The native wire, protocol version 1 of ALPN "nodepass2".

Pure: `frames` (data links), `link` (the state of one), `messages` (control link), `handshake`,
`proof` (how a data link shows that it belongs). Glue: `control`, `datalink`, `datagrams`.
Together: `peer`, with `acceptor` on the server's side and `connector` on the client's.
"""

#: TLS protocol names (RFC 7301) of control links and of data links.
ALPN_CONTROL = b"nodepass2"
ALPN_DATA = b"nodepass2-data"
