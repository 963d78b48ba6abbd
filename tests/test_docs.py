"""What the documentation says is held by what it names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_promises_name_tests_that_exist() -> None:
    """Every test that the table of promises names is there."""
    named = set(re.findall(r"``(test_\w+)``", (ROOT / "docs" / "promises.rst").read_text()))
    sources = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tieredsession/testing/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in text} == set()
