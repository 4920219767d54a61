"""The README's Python blocks run in order, and the files that it links exist."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_run(tmp_path, monkeypatch, images, capsys):
    monkeypatch.chdir(tmp_path)
    images[0].save("image.png")
    images[1].save("another.png")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["result"].prompt in capsys.readouterr().out
    assert len(names["results"]) == 2 and names["style"].prompt.startswith("in the style of ")
    assert 0 < len(names["short"].ids) < 6
    assert names["soft"].grad is None and names["ids"].shape == (4, 16)


def test_every_file_the_readme_shows_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links and all((README.parent / link).exists() for link in links)
