"""scalar_mlp/1: all layers of a network of scalars in one kernel."""
