"""The outputs for counted events besides the reports. Nothing here changes a count."""
