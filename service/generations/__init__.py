"""Creating jobs that generate weights."""
