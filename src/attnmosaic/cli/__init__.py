"""What all commands share: running one, its user errors, its progress, its help. Imports no torch."""
