"""How related the tasks of networks are, by their weights."""
