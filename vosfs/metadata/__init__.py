"""Port 1, names and attributes: the tree of nodes, and the adapters that keep it."""
