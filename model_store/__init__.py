"""Where weights, cards and inputs live: one small protocol, a local directory and S3 behind it."""
