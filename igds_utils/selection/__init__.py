"""Pools and what selectors need of them, pools of known quality, and selection as a tool."""
