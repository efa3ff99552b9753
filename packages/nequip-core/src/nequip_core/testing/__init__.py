"""The public suite that every model must pass, for authors of plugins.

`systems`: small structures. `checks`: one function for each law, usable anywhere. `conformance`: a class of tests to
derive from. `kernels.check_kernel`: a kernel against the reference. `recordings`: recorded steps without a GPU.
`pytest_plugin`: loaded by pytest where nequip-core is installed; makes the class work.
"""
