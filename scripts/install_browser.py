"""Find a Chrome or Chromium for the browser tests, or install one: Playwright's own, else the system's package.

Run by `make test`. Prints where the browser is; exits with one line where none can be had.
"""

import os
import shutil
import subprocess
import sys

sys.path.insert(0, "tests")
from browser import find_chromium  # the same search as the tests


def attempts() -> list[list[str]]:
    """Commands that install a browser, the least intrusive first."""
    commands = [[sys.executable, "-m", "playwright", "install", "chromium-headless-shell"]]
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not as_root or shutil.which("sudo")):
        commands.append([*as_root, "apt-get", "update", "-qq"])
        commands.append([*as_root, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"])
    return commands


def main() -> None:
    for command in attempts():
        if find_chromium() is None:
            print("no browser yet:", " ".join(command[-4:]), flush=True)
            subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True)
    found = find_chromium()
    if found is None:
        sys.exit("no Chrome or Chromium, and none could be installed: install one, then run `make test` again")
    print("browser:", found)


main()
