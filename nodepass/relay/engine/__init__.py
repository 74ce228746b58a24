"""The fast relay: sockets of our own under one edge-triggered epoll, on Linux."""
