"""What operators see: metrics, rules and dashboards, and the check that holds them together."""
