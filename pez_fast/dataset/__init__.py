"""Data sets: a prompt for each image of a folder, list, Parquet file or tar, written as Parquet shards.

A run can be killed at any moment and continued.
"""

from __future__ import annotations

from pez_fast._shared.files import FullDiskError
from pez_fast.dataset.classifiers import learn_classifiers, read_classifiers
from pez_fast.dataset.export import Export, export_rows
from pez_fast.dataset.job import Job, Summary, invert_dataset
from pez_fast.dataset.lengths import LengthJob, study_lengths
from pez_fast.dataset.sources import Item, Source, open_source

__all__ = [
    "Export",
    "FullDiskError",
    "Item",
    "Job",
    "LengthJob",
    "Source",
    "Summary",
    "export_rows",
    "invert_dataset",
    "learn_classifiers",
    "open_source",
    "read_classifiers",
    "study_lengths",
]
