"""What can be generated: targets and bundles."""
