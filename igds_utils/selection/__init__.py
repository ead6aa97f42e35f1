"""Pools and what is measured on them, pools of known quality, and selection as a tool."""
