"""nequip.radial_convolution/1: the convolution with the last layer of its radial network."""
