"""What a node is: a server, a client, or a plain forwarder. Composition of the layers beneath."""
