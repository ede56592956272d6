"""LightningModules, optimizer steps, checkpoints, and the trainer, processes and results of a run."""
