"""Services over HTTP: one client for OpenAI-compatible servers, and the hub."""
