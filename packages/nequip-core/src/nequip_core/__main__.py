"""``python -m nequip_core COMMAND ...`` is ``nequip COMMAND ...`` of this interpreter."""

from __future__ import annotations

import sys

from nequip_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
