"""The queue's two ends: messages, client and jobs (no torch), and the worker itself."""
