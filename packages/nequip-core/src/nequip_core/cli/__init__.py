"""The commands: one module for each, with ``run(argv) -> exit code``; importing one imports no torch."""
