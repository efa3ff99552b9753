"""allegro.contract/1 as Triton kernels: table, generated source, operators, reference on the CPU."""
