"""Models: graph to atomic energies. They know nothing of forces, cells, training or engines."""
