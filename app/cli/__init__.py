"""The `eventstream` command."""
