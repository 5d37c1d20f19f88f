"""plan: tokens, memory, judge cost and a bound of the time, before anything starts. docs/scaling.md."""
