"""The commands, one in each module, each imported when it is called."""
