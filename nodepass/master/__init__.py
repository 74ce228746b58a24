"""The master: many tunnels in a few worker processes, driven over HTTP."""
