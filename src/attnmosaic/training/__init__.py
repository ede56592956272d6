"""Schedules, the stage-wise LightningModule and what a run needs around it."""
