"""Data: files to structures, structures to batches."""
