"""From a potential to files: the package container, and loading a model from it."""
