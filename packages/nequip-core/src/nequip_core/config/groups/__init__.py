"""YAML presets on Hydra's search path; defaults live in the dataclasses."""
