"""Jobs of a sweep at once: how many, and each in a fresh process."""
