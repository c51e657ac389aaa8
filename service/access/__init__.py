"""Who may do what, and how much of it: API keys, scopes, limits, and the gate before every endpoint."""
