"""A headless Chromium that notes what a page asks for and complains about. Use it through the fixture `browser`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page, expect, sync_playwright

LAPTOP, PHONE = (1366, 768), (390, 844)
#: Milliseconds, of a busy machine: where a page is slow, nothing is wrong with it. `expect` waits on every page; `page.wait_for_function`
#: fails where it has to wait on one that forbids `eval`, as reports do.
PATIENCE = 120_000
expect.set_options(timeout=PATIENCE)
_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


def executable() -> str:
    """The Chromium of this machine: $CHROMIUM, or the first on the PATH."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise RuntimeError(f"no Chromium: install one ({', '.join(_NAMES)}), name it in $CHROMIUM, or -m 'not browser'")
    return found


@dataclass
class Visit:
    """A page that is open, the addresses it asked for, and its errors."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def elsewhere(self, origin: str) -> list[str]:
        """What was asked for that does not begin with `origin`, nor is inside the page."""
        return [address for address in self.asked if not address.startswith((origin, "data:", "blob:", "about:"))]

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window; 0 for one that need not be scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@contextmanager
def running() -> Iterator[Browser]:
    """Chromium, until the end."""
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which root cannot have
        browser = playwright.chromium.launch(executable_path=executable(), args=sandbox)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, address: str, size: tuple[int, int] = LAPTOP) -> Iterator[Visit]:
    """Open `address` in a window of `size`, with nothing remembered from other visits."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    context.set_default_timeout(PATIENCE)
    visit = Visit(context.new_page())
    visit.page.on("request", lambda request: visit.asked.append(request.url))
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("console", lambda said: visit.complaints.append(said.text) if said.type == "error" else None)
    visit.page.on("dialog", lambda dialog: (visit.complaints.append(dialog.message), dialog.dismiss()))
    visit.page.goto(address)
    yield visit
    context.close()
