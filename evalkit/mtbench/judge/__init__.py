"""Answers -> judgments: the calls to a judge, how they are made, and the store of the replies."""
