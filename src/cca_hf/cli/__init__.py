"""The command `cca`."""
