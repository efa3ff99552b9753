"""Losses of compiled training against eager, step by step, through `nequip train`.

python benchmarks/compiled_losses.py FILE [--device cpu] [--steps 200] [--model nequip allegro] [--out FILE.csv]

FILE holds structures with energies and forces, from which 40 are taken. Each pair of runs, in float64 and in float32,
starts from the same weights; the largest relative deviation of a loss up to the last step, and that of the last, are
written.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from sides import hardware, today, write

CONFIG = """\
defaults: [base, {{model: {model}}}, _self_]
loggers: [csv]
data: {{path: {file}, cache: cache, split: {{train: 40, val: 5}}, batch: {{size: 2}}}}
model: {keys}
training: {{optimizer: {{lr: 0.005}}, ema_decay: 0.99, gradient_clip: 10.0}}
trainer: {{accelerator: {device}, max_epochs: -1, max_steps: {steps}, log_every_n_steps: 1, enable_progress_bar: false}}
"""
KEYS: dict[str, dict[str, object]] = {
    "nequip": {"cutoff": 4.0, "l_max": 1, "num_layers": 2, "num_features": 8, "radial_mlp": [16]},
    "allegro": {"cutoff": 4.0, "l_max": 1, "num_layers": 2, "num_scalar_features": 16, "num_tensor_features": 8},
}


def losses(folder: Path, name: str, *words: str) -> list[float]:
    """Of each step of a run."""
    command = [sys.executable, "-m", "nequip_core", "train", "run.yaml", f"run.dir={name}", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    with (folder / name / "steps.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--model", nargs="+", default=list(KEYS), choices=list(KEYS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for model in options.model:
        for dtype in ("float64", "float32"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                keys = json.dumps(KEYS[model] | {"dtype": dtype})
                file = options.file.resolve()
                config = CONFIG.format(model=model, file=file, keys=keys, device=options.device, steps=options.steps)
                (folder / "run.yaml").write_text(config)
                eager = losses(folder, "eager")
                compiled = losses(folder, "compiled", "training.compile=true")
                report = json.loads((folder / "compiled" / "run.json").read_text())["compile"]
            assert len(eager) == len(compiled) == options.steps
            deviations = [abs(ours / theirs - 1) for ours, theirs in zip(compiled, eager, strict=True)]
            rows.append(
                {
                    "date": today(),
                    "hardware": hardware(options.device, 1),
                    "data": options.file.name,
                    "model": model,
                    "dtype": dtype,
                    "steps": options.steps,
                    "first_loss": f"{eager[0]:.6g}",
                    "last_loss": f"{eager[-1]:.6g}",
                    "largest_deviation": f"{max(deviations):.1e}",
                    "last_deviation": f"{deviations[-1]:.1e}",
                    "trace_s": report["trace_s"],
                    "inductor_s": report["inductor_s"],
                    "graphs": report["graphs"],
                    "recompiles": report["recompiles"],
                }
            )
            print(rows[-1], flush=True)
            write(options.out, rows)


if __name__ == "__main__":
    main()
