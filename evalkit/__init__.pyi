from evalkit.cli.python import evaluate as evaluate
from evalkit.cli.python import load as load
from evalkit.tasks.answers import split_answer as split_answer

__version__: str
