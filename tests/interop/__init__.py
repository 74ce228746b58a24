"""Our nodes together with the Go programs that ``NODEPASS_GO`` names; see ``make interop``."""
