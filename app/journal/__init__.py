"""Where accepted batches wait until they are counted. Nothing here looks into an event."""
