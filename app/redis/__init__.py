"""What Redis holds beside the journal, and how to reach Redis. Nothing here counts events.

All keys are listed in `keys.py`, all scripts are in `lua/`.
"""
