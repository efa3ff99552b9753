"""``nequip toy-hello [NAME]``."""

from __future__ import annotations

import argparse


def run(argv: list[str]) -> int:
    """Greet."""
    parser = argparse.ArgumentParser(prog="nequip toy-hello", description="Greet somebody.")
    parser.add_argument("name", metavar="NAME", nargs="?", default="world", help="who is greeted")
    print(f"Hello, {parser.parse_args(argv).name}.")
    return 0
