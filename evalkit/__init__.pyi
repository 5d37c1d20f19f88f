from evalkit.api import evaluate as evaluate
from evalkit.api import load as load
from evalkit.tasks.answers import split_answer as split_answer

__version__: str
