"""What made the weights that ship with the world, and the variants of its ablations."""
