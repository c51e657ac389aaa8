"""The command line: loomweight."""
