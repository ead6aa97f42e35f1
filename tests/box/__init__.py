"""A hub in a box: the paper's models, SAEs, datasets and COMET, tiny, in their true formats.

A server on loopback speaks the hub's HTTP API; conftest.py points all tests at it.
"""
