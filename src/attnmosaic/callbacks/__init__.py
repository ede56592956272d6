"""What is written, drawn and shown while a run trains."""
