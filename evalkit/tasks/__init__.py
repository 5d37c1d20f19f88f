"""Task YAML and prepared file -> samples -> requests."""
