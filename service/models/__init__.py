"""Stored models and their files."""
