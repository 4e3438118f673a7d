"""Headless Chromium, for the tests of pages."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browser_command(profile, *arguments):
    """The command that opens a page with its own profile folder, in containers with a small /dev/shm too."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}")
    return [CHROMIUM, *flags, *arguments]
