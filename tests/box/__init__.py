"""A hub in a box: the paper's models, SAEs, datasets and COMET under their true ids and file formats, all tiny.

A server on loopback speaks the hub's own HTTP API; tests/conftest.py points the whole test session at it.
"""
