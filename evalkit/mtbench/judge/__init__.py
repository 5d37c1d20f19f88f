"""Answers -> judgments: what a judge is asked, the asking, and what it said."""
