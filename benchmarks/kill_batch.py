"""Kills `pez-fast batch` (SIGKILL) at random moments and starts it again, while its data set grows.

After half of the kills, images are added and changed, and a damaged one is mended. At the end every id must be there
once, with the values of one undisturbed run over the data set as it is then.

    python benchmarks/kill_batch.py                     20 kills over the 200 held-out images and 5 damaged ones
    python benchmarks/kill_batch.py --kills 3 --images 24 --damaged 2

Prints a table; exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tables import aligned

HELDOUT = Path(__file__).parent / "heldout"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("kills", 20),
        ("images", 200),
        ("damaged", 5),
        ("steps", 60),
        ("prompt-len", 4),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), args, random.Random(args.seed))


def compare(folder: Path, args: argparse.Namespace, rng: random.Random) -> int:
    """Makes an undisturbed and a killed run, compares them and prints the table; returns the exit code."""
    make_images(folder / "images", args.images - args.images // 4, args.damaged)
    options = f"--model emoji --device cpu --steps {args.steps} --refine 2 --prompt-len {args.prompt_len}"
    command = [sys.executable, "-m", "pez_fast.cli", "batch", str(folder / "images"), *options.split()]
    # Small batches leave work until the last kill.
    size = max(1, (args.images + args.damaged) // (2 * args.kills))
    disturbed = [*command, "--out", str(folder / "killed"), "--batch-size", str(size)]
    lines: list[tuple[Any, ...]] = [("start", "killed while", "after", "images finished", "files left half-written")]
    kills, damaged, names = 0, args.damaged, []
    while kills < args.kills:
        if kills == args.kills // 2:
            damaged, names = grow(folder / "images", args.images, args.damaged)
        if (end := killed(disturbed, folder / "killed", rng)) is None:
            break
        kills += 1
        lines.append(
            (kills, end[0], f"{end[1]:.2f} s", len(rows_of(folder / "killed")), len(temporary(folder / "killed")))
        )
    finish(disturbed, failing=damaged > 0)
    finish([*command, "--out", str(folder / "calm"), "--batch-size", "16"], failing=damaged > 0)
    calm, rows = rows_of(folder / "calm"), rows_of(folder / "killed")
    lines.append(("last", "-", "-", len(rows), len(temporary(folder / "killed"))))
    ids = [row["id"] for row in rows]
    checks = {
        f"{args.kills} kills": kills == args.kills,
        f"each of {len(names)} ids once": sorted(ids) == names,
        "the undisturbed run too": sorted(row["id"] for row in calm) == names,
        "equal values": sorted(rows, key=by_id) == sorted(calm, key=by_id),
        f"{damaged} error rows": sum(row["error"] is not None for row in rows) == damaged,
        "different prompts": len({row["prompt"] for row in rows}) > args.images // 2,
        "no temporary files": not temporary(folder / "killed"),
    }
    print(
        aligned(lines),
        aligned([("check", ""), *((name, "yes" if held else "NO") for name, held in checks.items())]),
        sep="\n\n",
    )
    return 0 if all(checks.values()) else 1


def make_images(folder: Path, images: int, damaged: int) -> None:
    """Writes held-out images and damaged ones into two folders."""
    files = sorted(HELDOUT.glob("*.png"))[:images]
    for half in ("a", "b"):
        (folder / half).mkdir(parents=True)
    for k, file in enumerate(files):
        shutil.copy(file, folder / "ab"[k % 2] / file.name)
    for k in range(damaged):
        data = files[k].read_bytes()
        (folder / "ab"[k % 2] / f"{k:03d}-damaged.png").write_bytes((data[: len(data) // 2], b"", b"no image")[k % 3])


def grow(folder: Path, images: int, damaged: int) -> tuple[int, list[str]]:
    """Adds the other images, changes two and mends one; returns the number of damaged ones and all ids, sorted."""
    files = sorted(HELDOUT.glob("*.png"))[:images]
    for k, file in enumerate(files):
        if not (target := folder / "ab"[k % 2] / file.name).exists():
            shutil.copy(file, target)
    for k in (0, 1):
        shutil.copy(files[-1 - k], folder / "ab"[k] / files[k].name)
    for path in sorted(folder.rglob("*damaged.png"))[: damaged // 2]:
        shutil.copy(files[2], path)
    return damaged - damaged // 2, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def killed(command: list[str], out: Path, rng: random.Random) -> tuple[str, float] | None:
    """Starts the run and kills it at a random moment.

    Returns:
        What the run was doing and the seconds from its start to SIGKILL; None if it ended before.
    """
    begun, before, left = time.monotonic(), written(out), temporary(out)
    moment = rng.choice(("starting", "learning", "writing"))
    delay = rng.uniform(0, {"starting": 5, "learning": 0.4, "writing": 0}[moment])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:  # until the run has written a shard, or is about to write one
            if moment == "starting" or (temporary(out) - left if moment == "writing" else written(out) != before):
                break
            time.sleep(0.0005)
        try:
            process.wait(delay)
            return None
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return moment, time.monotonic() - begun
    finally:
        process.kill()
        process.wait()


def finish(command: list[str], failing: bool) -> None:
    """Lets the run end; exits if its exit code is wrong."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != (1 if failing else 0):
        raise SystemExit(f"the run ended with {done.returncode}: {done.stderr}")


def written(out: Path) -> list[tuple[str, int]]:
    """Returns the shards and when each was written."""
    return (
        sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(out) if entry.name.endswith(".parquet"))
        if out.exists()
        else []
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Returns all rows of all shards; fails if one cannot be read."""
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def temporary(out: Path) -> set[Path]:
    """Returns the temporary files."""
    return set(out.glob(".*.tmp"))


def by_id(row: dict[str, Any]) -> str:
    """Returns the key by which rows are sorted."""
    return row["id"]


if __name__ == "__main__":
    sys.exit(main())
