from evalkit.tasks.answers import split_answer as split_answer

__version__: str
