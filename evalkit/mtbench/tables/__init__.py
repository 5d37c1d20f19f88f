"""Judgments -> tables."""
