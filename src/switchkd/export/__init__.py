"""A model for others: one precision, files of a size, a layout that serving engines read, a card, and the hub."""
