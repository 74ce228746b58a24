"""How fast nodepass is on this machine, beside others under the same load.

    python -m benchmarks [--quick] [--budget SECONDS] [--output DIRECTORY]

Measured are ours, a Go relay with as many hops (the yardstick) and every other tunnel found on
PATH: rathole, frps and frpc, chisel, and NodePass in Go as `nodepass-go` or by `NODEPASS_GO`. One
after the other they get a short slice of the same load, again and again, so that what disturbs the
machine disturbs all. Visitors, tunnels and target share the machine: absolute figures say little
about a network, the ratios between what is run side by side say more.
"""
