"""Deep equivariant interatomic potentials: structures to graphs, models, training and simulation."""
