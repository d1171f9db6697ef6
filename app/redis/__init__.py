"""The data in Redis besides the journal, and the connection to Redis. Nothing here counts events.

`keys.py` lists all keys, and `lua/` holds all scripts.
"""
