"""The console: one page without dependencies."""
