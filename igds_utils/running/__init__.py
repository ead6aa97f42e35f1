"""The notebooks in their order, here or as jobs of a cluster."""
