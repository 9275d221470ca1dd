"""A real browser for the tests: found on the machine, driven by Playwright, with the network blocked."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The system's browser, or the one that Playwright installed, or None."""
    for name in NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    cache = Path.home() / ".cache" / "ms-playwright"
    own = sorted(cache.glob("chromium*/*/chrome-headless-shell")) + sorted(cache.glob("chromium*/*/headless_shell"))
    return str(own[-1]) if own else None


@contextmanager
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            yield launched
        finally:
            launched.close()
