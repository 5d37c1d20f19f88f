"""plan: tokens, time, memory and judge cost of a run, before anything starts. docs/scaling.md."""
