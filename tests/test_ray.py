"""Data sets learned by Ray: the class for `map_batches`, and the engine of the command, with a worker and the driver killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import pez_fast

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pq = pytest.importorskip("pyarrow.parquet")

from inputs import refused  # noqa: E402

from pez_fast.dataset import Job, invert_dataset  # noqa: E402
from pez_fast.ray import _ShardActor, ray_inverter, run_on_ray  # noqa: E402

HELDOUT = sorted((Path(__file__).parents[1] / "benchmarks" / "heldout").glob("*.png"))
QUICK = {"prompt_len": 3, "steps": 6, "polish": 0}
DRIVER = """
import logging, ray
from pez_fast.cli import main
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir={temporary!r})
main()
"""


@pytest.fixture(scope="module")
def emoji():
    return pez_fast.load_clip("emoji", device="cpu")


@pytest.fixture
def short_folder():
    """Ray puts sockets into it, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


def held(out: Path) -> list[dict]:
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


@pytest.mark.parametrize("layout", ["numpy", "pandas"])
def test_a_batch_gets_the_columns_of_invert(emoji, layout: str):
    import numpy as np

    images = np.empty(3, object)
    images[:] = [str(HELDOUT[0]), b"no picture", HELDOUT[1].read_bytes()]
    batch = {"image": images, "n": np.arange(3)}
    if layout == "pandas":
        batch = pytest.importorskip("pandas").DataFrame(batch)
    learned = ray_inverter("emoji", device="cpu", **QUICK)()(batch)
    assert type(learned) is type(batch) and list(learned["n"]) == [0, 1, 2]
    for k, file in ((0, HELDOUT[0]), (2, HELDOUT[1])):
        alone = pez_fast.invert(file, emoji, **QUICK)
        assert learned["ids"][k].tolist() == alone.ids
        assert learned["error"][k] is None or layout == "pandas" and np.isnan(learned["error"][k])  # its own word for nothing
        for name in ("prompt", "ids_score", "text_score", "seed", "steps"):
            assert learned[name][k] == getattr(alone, name)
    assert learned["prompt"][1] == "" and np.isnan(learned["text_score"][1]) and len(learned["ids"][1]) == 0
    assert learned["error"][1].startswith("image the given bytes is in none of the formats")


def test_what_cannot_be_used_is_refused(emoji, tmp_path: Path):
    with refused(TypeError, "'speed' is not an option;"):
        ray_inverter("emoji", speed=3)
    with refused(ValueError, "column 'image' is not in the batch; its columns are picture"):
        ray_inverter("emoji", device="cpu", **QUICK)()({"picture": []})
    (tmp_path / "list.txt").write_text(str(HELDOUT[0]))
    job = Job(tmp_path / "list.txt", tmp_path / "out", QUICK)
    with refused(ValueError, "actors must be a positive integer; got 0"):
        run_on_ray(job, "emoji", None, "cpu", 0)
    with refused(ValueError, "an actor has another model than the run: model's weights 0 there, "):
        known = {"model's weights": "0", "preprocessing": "0", "allowed tokens": "0", "dtype": "float32", "device": "cpu"}
        _ShardActor("emoji", None, "cpu", job.options, known, str(tmp_path), "part-ray-00000-of-00001", 1)


def workers(driver: int) -> list[int]:
    """Processes below the driver that hold an actor of ours."""
    parents, ours = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"_ShardActor" in (folder / "cmdline").read_bytes():
                ours.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue

    def below(process: int) -> bool:
        return process == driver or (process in parents and below(parents[process]))

    return [process for process in ours if process != driver and below(process)]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")
def test_a_worker_and_the_driver_are_killed(emoji, short_folder: str, tmp_path: Path):
    """Every id once, with the values of an undisturbed run in one process."""
    (tmp_path / "list.txt").write_text("\n".join([*map(str, HELDOUT[:24]), "missing.png"]))
    invert_dataset(tmp_path / "list.txt", tmp_path / "calm", emoji, prompt_len=3, steps=60)
    out = tmp_path / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = ["batch", str(tmp_path / "list.txt"), "--out", str(out), "--model", "emoji", "--device", "cpu", "--engine", "ray",
                 "--steps", "60", "--prompt-len", "3", "--batch-size", "2"]  # fmt: skip
    command = [sys.executable, "-c", DRIVER.format(temporary=short_folder), *arguments]

    def begin() -> subprocess.Popen:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_for(shards: int, process: subprocess.Popen) -> None:
        limit = time.monotonic() + 120
        while len(list(out.glob("*.parquet"))) < shards:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < limit, "no shard in two minutes"
            time.sleep(0.01)

    driver = begin()
    wait_for(2, driver)
    (worker,) = workers(driver.pid)
    os.kill(worker, signal.SIGKILL)
    wait_for(4, driver)
    assert worker not in workers(driver.pid)
    driver.kill()
    driver.wait()
    before = len(held(out))
    assert 8 <= before < 25
    driver = begin()
    said = driver.communicate(timeout=120)[1]
    assert driver.returncode == 1, said  # one picture is missing
    assert said.splitlines()[-1] == f"25 of 25 pictures finished in {out}, 1 of them unreadable"
    rows = held(out)
    assert [row["id"] for row in rows] == sorted([*map(str, HELDOUT[:24]), "missing.png"])
    assert rows == held(tmp_path / "calm")
