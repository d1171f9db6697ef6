"""Where counted events go besides the reports. Nothing here changes a count."""
