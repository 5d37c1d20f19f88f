"""The files of a run: its folder, results and environment."""
