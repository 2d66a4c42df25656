"""A real browser without a screen, for tests of pages; skipped with the reason where there is none."""

import contextlib
import shutil

import pytest


@contextlib.contextmanager
def chromium():
    """Chromium; as long as it is there, no other event loop can run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev: playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def browser():
    """Chromium, for one test."""
    with chromium() as started:
        yield started
