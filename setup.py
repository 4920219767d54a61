"""Everything stands in pyproject.toml; this file is for the extension modules, of which this release has none."""

from setuptools import setup

setup()
