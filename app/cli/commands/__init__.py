"""The commands, each module imported once one of its commands is run."""
