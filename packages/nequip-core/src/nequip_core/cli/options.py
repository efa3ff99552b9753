"""Options that several commands share, and their parsing. Imports no torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def command_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of ``nequip COMMAND``. Long options must be written in full, so that scripts survive new ones."""
    return argparse.ArgumentParser(
        prog=f"nequip {command}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: print JSON on standard output instead of text."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, ``--checkpoint``, ``--weights``: which file and which of its weights."""
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="a run's folder, a checkpoint (.ckpt) or a package (.nequip.zip)"
    )
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="of a run's folder")
    parser.add_argument("--weights", choices=["ema", "raw"], default="ema", help="averaged ones where there are any")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device auto|cpu|cuda[:N]``."""
    parser.add_argument("--device", type=device, default="auto", help="auto | cpu | cuda | cuda:N")


def device(text: str) -> str:
    """A device's name as the user writes it; whether it exists is seen when a model is loaded onto it."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; expected auto, cpu, cuda or cuda:N")
    return text


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """``--kernels auto|reference|NAME|OPERATOR=NAME,...``."""
    parser.add_argument(
        "--kernels", type=kernels, default="auto", help="auto | reference | a kernel's name | OPERATOR=NAME,..."
    )


def kernels(text: str) -> str | dict[str, str]:
    """One name for all operators, or names for some, where auto is for the others."""
    return assignments(text) if "=" in text else text


def assignments(text: str) -> dict[str, str]:
    """``energy=REF_energy,forces=REF_forces`` as a dictionary."""
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of NAME=VALUE separated by commas")
    return {name: value for name, _, value in pairs}
