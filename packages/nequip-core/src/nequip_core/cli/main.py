"""``nequip COMMAND ...``: find the command in the registry, run it, turn errors into exit codes.

Imports no torch: a command imports what it needs when it runs.

Exit codes: 0; 1 our fault, with a traceback; 2 bad input, one message; 3 a check failed; 130 Ctrl-C; 141 the reader of
our output went away (``nequip info MODEL | head -1``), as a shell reports it for other programs.
"""

from __future__ import annotations

import importlib.metadata
import os
import select
import sys
from collections.abc import Sequence

from nequip_core.errors import NequipError
from nequip_core.plugins.manager import CORE_DISTRIBUTION, Registry, find, load_registry

BAD_INPUT = 2
INTERRUPTED = 130
OUTPUT_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; ``argv`` without the program's name."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except SystemExit as stop:
        # argparse ends this way: 0 after --help, 2 after an error that it has printed.
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return OUTPUT_CLOSED
    except (KeyboardInterrupt, Exception) as error:
        if is_interrupt(error):
            print("nequip: interrupted", file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, NequipError):
            raise
        print(f"nequip: {error}", file=sys.stderr)
        return error.exit_code
    return code


def _run(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print(importlib.metadata.version(CORE_DISTRIBUTION))
        return 0
    registry = load_registry()
    if argv[:1] in (["--help"], ["-h"]):
        print(usage(registry))
        return 0
    if not argv:
        print(usage(registry), file=sys.stderr)
        return BAD_INPUT
    code: int = find(registry.commands, argv[0], "command").run.load()(argv[1:])
    return code


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it began with Ctrl-C: where that came inside a library, what cleans up may fail in another way."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interrupt(error.__context__))


def usage(registry: Registry) -> str:
    """The commands that are installed, each in one line."""
    width = max(map(len, registry.commands))
    lines = [f"  {name:{width}}  {entry.summary}" for name, entry in registry.commands.items()]
    return "\n".join(
        [
            "usage: nequip COMMAND ...",
            "",
            "Equivariant interatomic potentials: training, simulation, evaluation.",
            "",
            "commands:",
            *lines,
            "",
            "`nequip COMMAND --help` says more, `nequip --version` prints the version of nequip-core.",
        ]
    )


def _output_is_closed() -> bool:
    """Whether nobody reads our output any more; then it is turned away, so that Python's exit does not fail on it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported without being asked for
    closed = bool(poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
