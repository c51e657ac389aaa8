"""Measurements that the README and the docs quote; each writes a JSON file into docs/results/."""
