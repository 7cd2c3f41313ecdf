"""Talking with models: in the terminal, and several side by side on a page in the browser."""
