"""Federated co-search of architecture and quantisation, a network per client, on hwcost's measured costs."""
