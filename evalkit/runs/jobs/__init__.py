"""A command as a job of its own: in a process of its own, with a file that says how it goes."""
