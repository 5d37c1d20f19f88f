"""The Ray engine: a pool of local engines over a machine or a cluster."""
