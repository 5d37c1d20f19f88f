"""How much an engine takes on at a time: figures that planning shares with the engine, without torch."""

# Beyond these numbers of rows and of tokens in one pass the hardware gains nothing.
MOST_ROWS = {"cpu": 64, "cuda": 1024}
MOST_TOKENS = {"cpu": 2048, "cuda": 8192}
# Share of the free memory that the rows' cache may take; prefixes and activations need the rest.
CACHE_SHARE = {"cpu": 0.4, "cuda": 0.7}
# Slots hold a multiple of this many tokens.
SLOT_STEP = 16
