"""The local engine: a transformers model in this process."""
