"""One process of several: calibrates with its own rows, and writes what each of its devices gets.

`test_devices.py` starts it as `one_of_several.py PORT PROCESSES NUMBER FOLDER [LAST]`; with `LAST`,
the process with the highest number is killed before it sees its batch of that number. What all have
seen is saved after each batch, and a run goes on from there.
"""

import faulthandler
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from lowrank_theory.calibration import Calibration, TriangularCalibration, load_calibration
from lowrank_theory.devices import ShardedCalibration, _combined, recover_layers
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted

INPUTS, BATCHES, SAMPLES = 8, 3, 8  # of each process
KINDS = {
    "second_moments": Calibration.empty(INPUTS),
    "triangle": TriangularCalibration.empty(INPUTS),
}


def rows(process: int) -> np.ndarray:
    spread = np.geomspace(1, 1e-3, INPUTS)
    return np.random.default_rng(process).standard_normal((BATCHES, SAMPLES, INPUTS)) * spread


def main(processes: int, number: int, folder: Path, last: int | None) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    for name, start in KINDS.items():
        file = folder / f"{name}.safetensors"
        calibration = load_calibration(file) if file.exists() else start
        seen = int(calibration.count) // (SAMPLES * processes)
        print(name, "goes on after", seen)
        sharded = ShardedCalibration(calibration, mesh, "rows")
        for step, batch in enumerate(rows(number)[seen:], seen):
            if step == last and number == processes - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            sharded = sharded.update(batch)
            together = sharded.combined()
            if number == 0:
                together.save(file)
        with jax.enable_x64(True):
            everywhere = jax.tree.leaves(_combined(sharded.parts, mesh=mesh, axis="rows"))
        for device in range(jax.local_device_count()):
            bits = [np.asarray(leaf.addressable_data(device)) for leaf in everywhere]
            np.savez(folder / f"{name}_{number}_{device}.npz", *bits)
        weights = np.eye(INPUTS) * (number + 1)
        layer = Observed(weights=weights, calibration=sharded.combined())  # each has its own
        [recovery] = recover_layers([layer], 2, ActivationWeighted(), mesh, "rows")
        np.testing.assert_allclose(np.linalg.norm(recovery.factors.left), (number + 1) * np.sqrt(2))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(220, exit=True)
    port, processes, number = map(int, sys.argv[1:4])
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
    assert jax.process_count() == processes
    main(processes, number, Path(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) > 5 else None)
