"""The verb serve: evalkit's local engine behind an OpenAI-compatible endpoint.

HTTP -> `asked` (JSON to requests) -> `worker` (one thread with the engine) -> `answers` (JSON).
"""
