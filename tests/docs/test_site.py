"""The site builds without a warning: pages, links, anchors and public names are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    offline = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    commands = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "--cuda-graphs" in commands
    assert "command: partition-model" not in commands, "a place of the reference was not filled in"
    assert "partitioner.compile" in (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not any(f'src="{scheme}' in text for scheme in ("http:", "https:", "//")), page
        assert "fonts.googleapis" not in text
