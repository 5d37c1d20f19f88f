"""Completions -> scores -> categories."""
