"""Ray learns prompts for data sets: with the class for `map_batches`, and as the engine of the command.

The tests kill a worker and the driver, and remove a node.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import pez_fast

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no test may wait for a network
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from inputs import refused  # noqa: E402

from pez_fast.dataset import Job, invert_dataset, shards  # noqa: E402
from pez_fast.dataset.manifest import model_part  # noqa: E402
from pez_fast.ray import _ShardActor, ray_inverter, run_on_ray  # noqa: E402

HELDOUT = sorted((Path(__file__).parents[1] / "benchmarks" / "heldout").glob("*.png"))
QUICK = {"prompt_len": 3, "steps": 6, "refine": 0}
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
    """Makes a folder for the sockets of Ray, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


def held(out: Path) -> list[dict]:
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def ids_of(path: Path) -> list[str]:
    return pq.read_table(path)["id"].to_pylist()


def check_rows(rows: list[dict], clip) -> None:
    """Asserts that each row holds what `invert` learns from its file; the file of the last row cannot be read."""
    for row in rows[:-1]:
        alone = pez_fast.invert(row["file"], clip, **QUICK)
        assert list(row["ids"]) == alone.ids and row["error"] is None
        assert [row[n] for n in ("prompt", "ids_score", "text_score", "seed", "steps")] == [
            getattr(alone, n) for n in ("prompt", "ids_score", "text_score", "seed", "steps")
        ]
    assert rows[-1]["error"].startswith("image ") and (rows[-1]["seed"], rows[-1]["steps"]) == (0, 0)
    assert rows[-1]["prompt"] is rows[-1]["ids"] is rows[-1]["ids_score"] is rows[-1]["text_score"] is None


def as_arrow(batch, layout: str):
    """Returns the batch as a table of pyarrow."""
    if layout == "pandas":
        return pa.Table.from_pandas(batch, preserve_index=False)
    return pa.table(dict(batch)) if layout == "numpy" else batch


@pytest.mark.parametrize("layout", ["numpy", "pandas", "pyarrow"])
@pytest.mark.parametrize("column", ["image", "file", "struct"])
def test_a_batch_gets_the_columns_of_invert(emoji, layout: str, column: str):
    files = [str(HELDOUT[0]), str(HELDOUT[1]), "missing.png"]
    data = [HELDOUT[0].read_bytes(), HELDOUT[1].read_bytes(), b"no image"]
    structs = [{"bytes": data[0], "path": None}, {"bytes": None, "path": files[1]}, {"bytes": None, "path": None}]
    table = pa.table({"file": files, "image": data, "struct": structs, "steps": [7, 8, 9]})
    batch = {name: table[name].to_numpy() for name in table.column_names} if layout == "numpy" else table
    batch = table.to_pandas() if layout == "pandas" else batch
    if layout == "pandas":
        batch.index = [3, 1, 2]
    learned = ray_inverter("emoji", device="cpu", column=column, **QUICK)()(batch)
    assert type(learned) is type(batch)
    columns = shards.columns()
    held = as_arrow(learned, layout)
    assert sorted(held.column_names) == sorted({"file", "image", "struct", *columns.names} - {"id", "stamp"})
    assert all(
        held.schema.field(name).type == columns.field(name).type for name in set(columns.names) - {"id", "stamp"}
    )
    check_rows(held.to_pylist(), emoji)


def test_what_cannot_be_used_is_refused(emoji, tmp_path: Path):
    with pytest.raises(TypeError, match="'speed' is not an option; the options are prompt_len, "):
        ray_inverter("emoji", speed=3)
    with refused(ValueError, "column 'image' is not in the batch; its columns are photo"):
        ray_inverter("emoji", device="cpu", **QUICK)()({"photo": []})
    (tmp_path / "list.txt").write_text(str(HELDOUT[0]))
    job = Job(tmp_path / "list.txt", tmp_path / "out", QUICK)
    with refused(ValueError, "actors must be a positive integer; got 0"):
        run_on_ray(job, "emoji", None, "cpu", 0)
    known = model_part(emoji, job.options, "cpu") | {"model's weights": "0"}
    with refused(ValueError, r"an actor has another model than the run: model's weights 0 there, \w{16} here$"):
        _ShardActor("emoji", None, "cpu", job.options, known, str(tmp_path), "part-ray-00000-of-00001", 1)


def test_an_actor_writes_what_a_run_in_one_process_continues(emoji, tmp_path: Path):
    """Its shards carry stamps: a data set that has grown is continued, and only what is new or changed is learned."""
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("\n".join([*map(str, HELDOUT[:2]), "missing.png"]))
    stem = "part-ray-00000-of-00001"
    for _ in range(2):
        job = Job(listed, out, QUICK)
        expected = job.configuration | model_part(emoji, job.options, "cpu")
        items = job.prepare(expected, "emoji", stem)
        actor = _ShardActor("emoji", None, "cpu", job.options, expected, str(out), stem, 1)
        actor({"item": [pickle.dumps(item) for item in items]})
        if not (tmp_path / "missing.png").exists():
            (tmp_path / "missing.png").write_bytes(HELDOUT[2].read_bytes())
        listed.write_text("\n".join([*map(str, HELDOUT[:2]), "missing.png", str(HELDOUT[3])]))
    assert sorted(map(len, (ids_of(path) for path in out.glob("*.parquet")))) == [2, 2]
    invert_dataset(listed, tmp_path / "calm", emoji, **QUICK)
    invert_dataset(listed, out, emoji, **QUICK)
    assert held(out) == held(tmp_path / "calm")


def workers(driver: int) -> list[int]:
    """Returns the processes below the driver that hold an actor of ours with a loaded model."""
    parents, ours = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
            if b"_ShardActor" in title and b"__init__" not in title:
                ours.append(int(folder.name))
        except OSError:  # the process has ended
            continue

    def below(process: int) -> bool:
        return process == driver or (process in parents and below(parents[process]))

    return [process for process in ours if process != driver and below(process)]


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")


@pytest.fixture(scope="module")
def cluster():
    """Makes a cluster of one node with one CPU; this process is its driver."""
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # Cluster writes its address into Ray's default folder, whatever temp_dir says, and does not make that folder.
        patch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        made = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder})
        try:
            ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def node(cluster):
    """Adds another node to the cluster."""
    added = cluster.add_node(num_cpus=1)
    yield added
    if added in cluster.worker_nodes:
        cluster.remove_node(added)


@pytest.mark.parametrize("layout", ["default", "pandas"])
def test_a_pipeline_of_ray_gets_the_columns_of_invert(emoji, node, tmp_path: Path, layout: str):
    """Blocks with and without errors have the same types, so Ray writes them and the test reads them as one table."""
    rows = [{"file": str(file), "image": file.read_bytes()} for file in HELDOUT[:3]] + [
        {"file": "missing.png", "image": b"none"}
    ]
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(rows, override_num_blocks=4).map_batches(
        ray_inverter("emoji", device="cpu", **QUICK),
        compute=ray.data.ActorPoolStrategy(size=1),  # each actor loads a model, which takes most of the time
        batch_size=1,
        num_cpus=1,
        batch_format=layout,
    )
    dataset.materialize().write_parquet(tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) > 1
    held = pq.read_table(tmp_path / "out")
    assert held.schema.field("error").type == pa.string() and held.schema.field("ids").type.value_type == pa.int32()
    check_rows(sorted(held.to_pylist(), key=lambda row: row["file"] == "missing.png"), emoji)


@needs_proc
def test_a_node_is_lost(emoji, cluster, node, tmp_path: Path):
    """The run holds every id once, with the values of an undisturbed run in one process."""
    (tmp_path / "list.txt").write_text("\n".join([*map(str, HELDOUT[:16]), "missing.png"]))
    options = {"prompt_len": 3, "steps": 60, "refine": 2}
    invert_dataset(tmp_path / "list.txt", tmp_path / "calm", emoji, **options)
    out, seen = tmp_path / "out", []

    def look() -> None:
        seen.append((len(held(out)) < 17, len(workers(os.getpid()))))

    def lose_it() -> None:
        limit = time.monotonic() + 300
        while (len(list(out.glob("*.parquet"))) < 3 or len(workers(os.getpid())) < 2) and time.monotonic() < limit:
            time.sleep(0.01)
        look()
        cluster.remove_node(node, allow_graceful=False)
        look()

    loser = threading.Thread(target=lose_it)
    loser.start()
    summary = run_on_ray(Job(tmp_path / "list.txt", out, {**options, "batch_size": 1}), "emoji", None, "cpu", 2)
    loser.join()
    assert seen == [(True, 2), (True, 1)]
    assert (summary.images, summary.finished, summary.errors, summary.interrupted) == (17, 17, 1, False)
    assert held(out) == held(tmp_path / "calm") and len(held(out)) == 17


def start_driver(listed: Path, out: Path, temporary: str) -> subprocess.Popen:
    """Starts the command `batch --engine ray` as a driver in a process of its own."""
    options = "--model emoji --device cpu --engine ray --steps 60 --refine 2 --prompt-len 3 --batch-size 2".split()
    code = DRIVER.format(temporary=temporary)
    command = [sys.executable, "-c", code, "batch", str(listed), "--out", str(out), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_shards(count: int, out: Path, driver: subprocess.Popen) -> None:
    """Waits until the driver has written so many shards."""
    limit = time.monotonic() + 300
    while len(list(out.glob("*.parquet"))) < count:
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < limit, "no shard in five minutes"
        time.sleep(0.01)


@needs_proc
def test_a_worker_and_the_driver_are_killed(emoji, short_folder: str, tmp_path: Path):
    """The run holds every id once, with the values of an undisturbed run in one process."""
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    files = [*map(str, HELDOUT[:24]), "missing.png"]
    listed.write_text("\n".join(files))
    invert_dataset(listed, tmp_path / "calm", emoji, prompt_len=3, steps=60, refine=2)

    driver = start_driver(listed, out, short_folder)
    wait_for_shards(2, out, driver)
    (worker,) = workers(driver.pid)
    os.kill(worker, signal.SIGKILL)
    wait_for_shards(4, out, driver)
    assert worker not in workers(driver.pid)
    driver.kill()
    driver.wait()
    assert 8 <= len(held(out)) < 25

    driver = start_driver(listed, out, short_folder)
    said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 1, said  # one image is missing
    assert said.splitlines()[-1] == f"25 of 25 images finished in {out}, 1 of them unreadable"
    rows = held(out)
    assert [row["id"] for row in rows] == sorted(files)
    assert rows == held(tmp_path / "calm")
