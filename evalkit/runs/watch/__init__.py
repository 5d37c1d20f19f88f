"""watch=DIR: the checkpoints of a training run, each evaluated once as soon as it is whole."""
