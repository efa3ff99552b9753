"""YAML presets that join the search path of configs."""
