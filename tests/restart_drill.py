"""Kills a small run again and again and compares its end with an uninterrupted run, bit for bit.

    python tests/restart_drill.py FOLDER --kills 20 --terms 5 --seed 0

A third of the SIGKILLs each comes at a random moment of the start, at a random moment of the training, and while a
checkpoint is being written. After a SIGTERM the exit status must be 75 and the newest checkpoint that of the last step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
from flax.traverse_util import flatten_dict

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shike_jax.storage.weights import load_weights  # noqa: E402
from tests.jobs import Job, digits  # noqa: E402

MOMENTS = ("start", "training", "saving")
START_SECONDS = 300  # more than any start takes


class Drill:
    """Runs of one configuration under a folder."""

    def __init__(self, folder: pathlib.Path, epochs: int, seed: int, *changes: str, devices: int = 1) -> None:
        """`changes` are further `--config.` flags without that prefix, `devices` as for `Job`."""
        self.folder, self.random, self._devices = folder, random.Random(seed), devices
        self.records: list[dict] = []
        # Saves every third step and records every step.
        self._flags = digits(
            epochs,
            1,
            "train.checkpoint_every_steps=3",
            "train.log_every_steps=1",
            "train.eval_every_epochs=0",
            *changes,
        )

    def run(self, kills: int, terms: int) -> None:
        """An uninterrupted run, one that is interrupted in random order, and the comparison."""
        self.finish("uninterrupted")
        plan = [*(MOMENTS[i % len(MOMENTS)] for i in range(kills)), *["term"] * terms]
        self.random.shuffle(plan)
        for moment in plan:
            self.terminate("interrupted") if moment == "term" else self.kill("interrupted", moment)
        self.finish("interrupted")
        self.same_end("uninterrupted", "interrupted")

    def start(self, name: str) -> subprocess.Popen:
        """Starts, or continues, the run of work directory `name`."""
        (process,) = Job(self.folder / name, self._flags, devices=self._devices).processes
        return process

    def finish(self, name: str) -> None:
        """Lets the run of `name` come to its end."""
        job = Job(self.folder / name, self._flags, devices=self._devices)
        assert job.wait(3600) == [0], job.output()[-2000:]

    def kill(self, name: str, moment: str) -> None:
        """Starts the run, and SIGKILLs it at a random moment of the named kind."""
        process = self.start(name)
        if moment == "start":
            self._sleep(process, self.random.uniform(0.0, 8.0))
        else:
            self._wait_for_steps(process, name)
        if moment == "training":
            self._sleep(process, self.random.uniform(0.0, 1.0))
        elif moment == "saving":
            checkpoints = self.folder / name / "checkpoints"
            while process.poll() is None and not any(checkpoints.glob("*orbax-checkpoint-tmp*")):
                time.sleep(0.002)
            self._sleep(process, self.random.uniform(0.0, 0.1))
        torn = [p.name for p in (self.folder / name / "checkpoints").glob("*tmp*")]
        process.kill()
        status = process.wait()
        assert status == -signal.SIGKILL, f"the run ended with {status} before it could be killed: use more epochs"
        self._record(name, signal="KILL", moment=moment, half_written=torn)

    def terminate(self, name: str) -> None:
        """Starts the run, SIGTERMs it at a random moment, and checks that nothing is lost."""
        process = self.start(name)
        self._wait_for_steps(process, name)
        self._sleep(process, self.random.uniform(0.0, 1.0))
        process.terminate()
        began = time.time()
        status = process.wait()
        assert status == 75, f"exit status {status} after SIGTERM, expected 75"
        record = self._record(name, signal="TERM", status=status, seconds=round(time.time() - began, 2))
        assert record["saved"] == record["last_step"], f"saved step {record['saved']} of {record['last_step']}"

    def same_end(self, one: str, other: str) -> None:
        """Asserts that two finished runs agree bit for bit, after every stage."""
        for stage in ("representation", "classifier"):
            a, b = (flatten_dict(load_weights(self.folder / x / "weights" / stage)[0], sep="/") for x in (one, other))
            assert a.keys() == b.keys()
            differ = [path for path in a if not np.array_equal(a[path], b[path])]
            assert not differ, f"{stage}: {len(differ)} of {len(a)} arrays differ, first {differ[0]}"
        a, b = (json.loads((self.folder / x / "results.json").read_text()) for x in (one, other))
        assert a["per_class"] == b["per_class"]
        assert [s["steps"] for s in a["stages"]] == [s["steps"] for s in b["stages"]]

    def _sleep(self, process: subprocess.Popen, seconds: float) -> None:
        """Sleeps, but not beyond the process's end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    def _wait_for_steps(self, process: subprocess.Popen, name: str) -> None:
        """Waits until the run has done steps since it was started."""
        before, limit = self._last_step(name)[1], time.time() + START_SECONDS
        while process.poll() is None and time.time() < limit and self._last_step(name)[1] < before + 2:
            time.sleep(0.01)

    def _last_step(self, name: str) -> tuple[int, int]:
        """(last step recorded, number of lines recorded)."""
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in reversed(lines):
            try:
                return json.loads(line)["step"], len(lines)
            except ValueError:  # cut off by a kill
                continue
        return 0, len(lines)

    def _record(self, name: str, **facts: object) -> dict:
        steps = [int(p.name) for p in (self.folder / name / "checkpoints").glob("*") if p.name.isdigit()]
        facts |= {"last_step": self._last_step(name)[0], "saved": max(steps, default=None)}
        self.records.append(facts)
        print(json.dumps(facts), flush=True)
        return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    drill = Drill(args.folder, args.epochs, args.seed)
    drill.run(args.kills, args.terms)
    during = sum(bool(r.get("half_written")) for r in drill.records)
    print(f"{args.kills} kills ({during} with a half-written checkpoint), {args.terms} SIGTERMs: equal bit for bit")


if __name__ == "__main__":
    main()
