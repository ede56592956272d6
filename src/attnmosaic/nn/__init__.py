"""Networks, attention and objectives in plain torch, without Lightning."""
