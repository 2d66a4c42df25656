"""A real browser without a screen, for tests of pages; skipped with the reason where there is none."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def browser():
    """Chromium, for one test: as long as it is there, no other event loop can run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"a browser test needs {CHROMIUM}")
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
