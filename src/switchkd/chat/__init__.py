"""Talking with models: in the terminal, and several beside each other on a page in the browser."""
