"""Use `sparsewm demo` in a headless Chromium, as a visitor would, and take a picture of it.

Example:

    pip install 'sparsewm[demo]' PyQt6-WebEngine
    python -m scripts.screenshot --env pusht --output docs/images/demo.png

Prints what was found after each thing that was done, as JSON; tests/demo/test_browser.py reads it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common import launch
from sparsewm.errors import UserError

FLAGS = "--no-sandbox --disable-gpu --force-color-profile=srgb"
HELPERS = """
const find = (part, words) => [...document.querySelectorAll(part)].find(e => words(e));
const labelled = name => find('input, textarea', e =>
    (e.getAttribute('aria-label') || e.closest('label, .block')?.innerText || '').includes(name));
const text = () => labelled('What happened')?.value || '';
const images = () => [...document.querySelectorAll('img')].filter(e =>
    e.getBoundingClientRect().width > 100 && !e.closest('footer'));
const pictures = () => images().map(e => e.src);
const button = name => find('button', e => e.innerText.trim() === name);
const slide = (name, value) => {
    const range = find('input[type=range]', e => e.getAttribute('aria-label')?.includes(name));
    range.value = value;
    for (const kind of ['input', 'change', 'pointerup'])
        range.dispatchEvent(new Event(kind, {bubbles: true}));
};
const open = name => { const box = find('input[role=listbox]', e => e.getAttribute('aria-label') === name);
    box.focus(); box.dispatchEvent(new MouseEvent('mousedown', {bubbles: true})); };
const pick = value => find('[role=option]', e => e.innerText.includes(value))
    ?.dispatchEvent(new MouseEvent('mousedown', {bubbles: true}));
const click = (number, across, down) => { const image = images()[number];
    const box = image.getBoundingClientRect();
    const at = {clientX: box.left + across * box.width, clientY: box.top + down * box.height, bubbles: true};
    image.dispatchEvent(new MouseEvent('click', at)); };
"""


@dataclass
class Arguments:
    """The demonstration in a browser."""

    env: str = "pusht"
    """Environment that the page begins with."""
    output: Path = Path("docs/images/demo.png")
    """Picture to write."""
    seconds: float = 120.0
    """How long each answer may take."""


class Browser:
    """A page in Chromium, as Qt brings it.

    Raises:
        UserError: it is not installed.
    """

    def __init__(self, seconds: float) -> None:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", FLAGS)
        os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
        try:
            from PyQt6.QtWebEngineWidgets import QWebEngineView
            from PyQt6.QtWidgets import QApplication
        except ImportError as error:
            raise UserError(f"a browser needs pip install PyQt6-WebEngine ({error})") from None
        self.app, self.seconds = QApplication(["screenshot"]), seconds
        self.view = QWebEngineView()
        self.view.resize(1120, 1410)
        self.view.show()

    def open(self, address: str) -> None:
        """Load a page."""
        from PyQt6.QtCore import QUrl

        self.view.load(QUrl(address))

    def ask(self, code: str) -> Any:
        """The value of a piece of JavaScript."""
        page, answers = self.view.page(), list[Any]()
        assert page is not None
        page.runJavaScript(f"(() => {{ {HELPERS} return {code}; }})()", answers.append)
        self._until(lambda: bool(answers), code)
        return answers[0]

    def wait(self, code: str) -> None:
        """Until a piece of JavaScript is true."""
        self._until(lambda: bool(self.ask(code)), code, every=1.0)

    def picture(self, path: Path) -> None:
        """Write what is seen."""
        for _ in range(20):  # it is drawn by another process
            self.app.processEvents()
            time.sleep(0.05)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.view.grab().save(str(path))

    def _until(self, ready: Callable[[], bool], what: str, every: float = 0.01) -> None:
        deadline = time.monotonic() + self.seconds
        while not ready():
            if time.monotonic() > deadline:
                self.picture(Path("runs/screenshot.png"))
                late = f"the page did not answer within `seconds` {self.seconds:g}, see runs/screenshot.png: "
                raise UserError(late + what)
            end = time.monotonic() + every
            while time.monotonic() < end:
                self.app.processEvents()
                time.sleep(0.005)


def visit(browser: Browser, address: str, output: Path) -> dict[str, Any]:
    """Everything that can be done on the page, and what is seen after it."""
    found: dict[str, Any] = {}

    def note(name: str) -> None:
        found[name] = {"text": browser.ask("text()"), "pictures": browser.ask("pictures()")}

    browser.open(address)
    browser.wait("text().includes('ready') && images().length === 4 && images()[1].naturalWidth > 0")
    note("begin")
    browser.ask("click(1, 0.35, 0.6)")
    browser.wait(f"pictures()[1] !== {json.dumps(found['begin']['pictures'][1])}")
    note("goal")
    browser.ask("slide('Candidates', 32)")
    browser.ask("slide('Iterations', 3)")
    browser.ask("button('Plan once').click()")
    browser.wait("text().includes('32 of 64') && pictures().length === 5")
    note("plan")
    browser.wait("!document.querySelector('.generating')")
    browser.picture(output)
    browser.ask("button('Start again').click()")  # the goal may be reached
    browser.wait("text().includes('ready')")
    browser.ask("slide('Share of tokens dropped', 0.75)")
    browser.ask("slide('Candidates', 16)")
    browser.ask("slide('Iterations', 2)")
    browser.ask("open('Planner')")
    browser.wait("!!find('[role=option]', e => e.innerText.includes('mppi'))")
    browser.ask("pick('mppi')")
    browser.ask("button('Plan once').click()")
    browser.wait("text().includes('16 of 64')")
    note("other settings")
    browser.ask("button('Until the goal').click()")
    browser.wait(f"text() !== {json.dumps(found['other settings']['text'])}")
    browser.ask("button('Stop').click()")
    browser.ask("button('Start again').click()")
    browser.wait("text().includes('ready')")
    note("again")
    browser.ask("open('Environment')")
    browser.wait("!!find('[role=option]', e => e.innerText.includes('pointmaze-large'))")
    browser.ask("pick('pointmaze-large')")
    browser.wait(f"pictures()[0] !== {json.dumps(found['again']['pictures'][0])}")
    note("another environment")
    browser.ask("open('Encoder')")
    browser.wait("!!find('[role=option]', e => e.innerText.includes('dinov2_vits14'))")
    browser.ask("pick('dinov2_vits14')")
    browser.wait("document.body.innerText.includes('choose embedded')")
    found["refused"] = browser.ask("document.body.innerText")
    answered = "performance.getEntriesByType('resource').filter(e => e.responseStatus === 200)"
    found["loaded"] = browser.ask(f"{answered}.map(e => e.name)")
    return found


def main(arguments: Arguments) -> None:
    from sparsewm.demo.page import LOOPBACK, serve

    browser = Browser(arguments.seconds)
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        port = one.getsockname()[1]
    page = serve(arguments.env, port, block=False)
    try:
        print(json.dumps(visit(browser, f"http://{LOOPBACK}:{port}", arguments.output)))
    finally:
        page.close()


if __name__ == "__main__":
    launch(main, Arguments)
