"""The journal, where accepted batches wait to be counted. Nothing here reads an event's fields."""
