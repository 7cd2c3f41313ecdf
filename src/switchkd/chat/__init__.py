"""Talking with models: in the terminal, and several side by side on a page in the browser."""

#: How many pictures the page shows models together.
PICTURES = 4
