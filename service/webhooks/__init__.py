"""Telling a client that its job ended: signed, tried again, and never sent into a network that is not its own."""
