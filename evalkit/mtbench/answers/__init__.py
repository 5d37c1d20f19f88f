"""Questions -> two-turn answers."""
