"""What lies on disk: durable logs, the run folder, results, the environment."""
