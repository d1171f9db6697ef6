"""What is kept in Redis beside the journal, and how Redis is reached. Nothing here counts events.

All keys are listed in `keys.py`, all scripts are in `lua/`.
"""
