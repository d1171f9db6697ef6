"""The commands, one in each module, imported once they are asked for."""
