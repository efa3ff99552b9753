"""The names of the kernels that programs without Python launch."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("launched.c")


@dataclass(frozen=True)
class Launched:
    """What programs launch that have its `environment`.

    Attributes:
        library: of launched.c.
        file: to which it writes.
    """

    library: Path
    file: Path

    @property
    def environment(self) -> dict[str, str]:
        """Besides that of this process."""
        return {"LD_PRELOAD": str(self.library), "NEQUIP_LAUNCHED": str(self.file)}

    @property
    def names(self) -> list[str]:
        """Until now, in the order of the first launches."""
        return self.file.read_text().splitlines() if self.file.exists() else []


def watch(folder: Path) -> Launched:
    """Compile the library into a folder."""
    made = Launched(folder / "launched.so", folder / "launched")
    command = ["cc", "-Wall", "-Werror", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(made.library)]
    done = subprocess.run([*command, "-ldl", "-pthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return made
