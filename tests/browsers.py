"""A real browser for the tests of pages: one that the machine has, or Debian's, which root installs."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
]
WITHOUT = "NO BROWSER: the pages were not looked at; install chromium, then run this again"


def installed() -> str | None:
    """Path of a browser, which is installed where root may do so."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            command = ["apt-get", "--quiet", "--quiet", *words]
            known = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=known, capture_output=True, timeout=900, check=False)
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """The browser, without a window; skips loudly where none can be had."""
    if not (path := installed()):
        warnings.warn(WITHOUT, stacklevel=2)
        pytest.skip(WITHOUT)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield started
        started.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *given: object) -> None:
        """Nothing: what the browser could not get is what it says itself."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a folder on this machine."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
