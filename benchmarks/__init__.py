"""How fast nodepass is on this machine, beside a Go relay of the same number of hops.

    python -m benchmarks [--quick] [--output FILE]

Visitors, both nodes and targets share the machine, so its absolute figures say little about a
network; the ratios between what is run side by side say more.
"""
