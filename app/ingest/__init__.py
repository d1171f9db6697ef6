"""Brings events into the journal, whoever sends them. Nothing here counts them."""
