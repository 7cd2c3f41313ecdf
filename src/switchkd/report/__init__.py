"""What runs left behind, for people: tables of results (table.py) and training curves (plot.py). Knows files only."""
