"""NequIP's convolution with weights from a table of the distance, in no memory, as Triton kernels."""
