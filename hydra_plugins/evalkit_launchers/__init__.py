"""Launchers of evalkit's multiruns that Hydra finds by the name of this package."""
