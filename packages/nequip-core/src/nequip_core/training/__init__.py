"""Training: loss, averaged weights, the Lightning module, checkpoints, tables and report of a run."""
