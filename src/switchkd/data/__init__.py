"""From files people have to batches: formats, chat templates, collation, and the guard before them."""
