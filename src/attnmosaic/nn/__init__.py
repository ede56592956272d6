"""Where and what networks, attention and objectives in plain torch. Knows nothing of Lightning."""
