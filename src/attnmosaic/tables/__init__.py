"""Published tables, and what runs on disk came to beside them. Light: imports no torch."""
