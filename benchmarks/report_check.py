"""Opens reports in headless Chromium and says what is wrong with them, at two widths and in both languages.

    .venv/bin/python -m benchmarks.report_check results/report.html results/experiments.html --out FOLDER

Faults are: whatever the page asks for but itself, entries of the console, errors of scripts, a page that is wider than
the window, and text that is cut off by it. FOLDER gets a screenshot of each page, width and language, and a PDF as it
prints. Chromium is found in the PATH, or named with --browser; without one nothing is checked (exit 77).

The browser is spoken to through a pipe (`--remote-debugging-pipe`), so nothing else is needed.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgod.system.files import atomic_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1300, 400)
LANGUAGES = ("en", "zh-Hant")
SKIPPED = 77
"""The exit code of a check that was left out, as of automake."""
SETTLE_SECS = 0.5
"""How long a page is watched after it has loaded."""
TALLEST = 12_000
"""Pixels of a screenshot from the top. The window is made as tall: a capture beyond it takes 20 times as long."""
SILENT_SECS = 60
EXEC = "import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.dup2(int(sys.argv[2]), 4)\nos.execv(sys.argv[3], sys.argv[3:])"
TOO_WIDE = """(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (one) => {
    for (let up = one.parentElement; up; up = up.parentElement)
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(up).overflowX)) return true;
    return false;
  };
  const out = [];
  if (document.documentElement.scrollWidth > width)
    out.push(`the page is ${document.documentElement.scrollWidth} pixels wide, the window ${width}`);
  for (const one of document.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !scrolls(one) && out.length < 6)
      out.push(`${one.tagName.toLowerCase()}.${one.getAttribute("class") || ""} reaches ${Math.round(box.right)}: ${
        (one.textContent || "").trim().slice(0, 60)}`);
  }
  return out;
})()"""
CHOOSE = """(() => {{
  const radio = document.querySelector('input[name=language][value="{language}"]');
  if (radio && !radio.checked) radio.click();
  return [!!radio, document.documentElement.lang];
}})()"""
OPEN = "document.querySelectorAll('details').forEach((one) => {{ one.open = {state}; }})"


class Browser:
    """A page of a browser, by the messages of the DevTools protocol."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back = to, back
        self.number, self.session = 0, ""
        self.events: list[dict[str, Any]] = []
        self.unread = b""

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def value(self, script: str) -> Any:
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script[:80]}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, method: str) -> None:
        """Until an event has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            if not select.select([self.back], [], [], SILENT_SECS)[0]:
                raise RuntimeError(f"the browser has said nothing for {SILENT_SECS} s")
            more = os.read(self.back, 1 << 16)
            if not more:
                raise RuntimeError("the browser ended")
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A headless browser with an empty page, which hears what happens there."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for end in pair]
    its_in, to, back, its_out = ends
    # processes of the browser may write a moment longer than the one that was started lives
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--remote-debugging-pipe", "--hide-scrollbars", "--disable-gpu", "--no-first-run"]
        options += [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        words = [sys.executable, "-c", EXEC, str(its_in), str(its_out), program, *options]
        with tempfile.TemporaryFile() as log:
            running = subprocess.Popen(words, pass_fds=(its_in, its_out), stdout=log, stderr=log)
            os.close(its_in)
            os.close(its_out)
            try:
                found = Browser(to, back)
                target = found.ask("Target.createTarget", url="about:blank")["targetId"]
                attached = found.ask("Target.attachToTarget", targetId=target, flatten=True)
                found.session = attached["sessionId"]
                for domain in ("Page", "Runtime", "Log", "Network"):
                    found.ask(f"{domain}.enable")
                yield found
            finally:
                running.terminate()
                running.wait()
                os.close(to)
                os.close(back)


def resize(page: Browser, width: int, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.ask("Emulation.setDeviceMetricsOverride", **size)


def load(page: Browser, url: str, width: int) -> None:
    """Load a page in a window of this width."""
    resize(page, width)
    page.events.clear()
    page.ask("Page.navigate", url=url)
    page.wait("Page.loadEventFired")
    time.sleep(SETTLE_SECS)
    page.value("0")  # events until now are here before its answer


def heard(page: Browser, url: str) -> Iterator[str]:
    """What a page did that it should not."""
    for event in page.events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and params["request"]["url"] != url:
            yield f"it asks for {params['request']['url'][:120]}"
        elif method == "Runtime.consoleAPICalled":
            said = " ".join(str(one.get("value", one.get("description"))) for one in params["args"])
            yield f"console {params['type']}: {said}"
        elif method == "Log.entryAdded":
            yield f"console {params['entry']['level']}: {params['entry']['text']}"
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            yield f"script: {details.get('exception', {}).get('description', details['text'])}"


def save(file: Path, answer: dict[str, Any]) -> None:
    with atomic_file(file) as written:
        written.write_bytes(base64.b64decode(answer["data"]))


def faults_of(page: Browser, file: Path, width: int, language: str, out: Path | None) -> list[str]:
    """Faults of a page at a width and in a language; with `out` also its screenshots and its PDF."""
    url = file.resolve().as_uri()
    load(page, url, width)
    switched, told = page.value(CHOOSE.format(language=language))
    found = [] if switched else ["no switch of languages"]
    if told != language:
        found.append(f"its language is {told!r} after {language!r} was chosen")
    name = f"{file.parent.name}-{file.stem}-{width}-{language}"
    for state in ("closed", "open"):
        page.value(OPEN.format(state=str(state == "open").lower()))
        found += [f"details {state}: {fault}" for fault in page.value(TOO_WIDE)]
        if out:
            resize(page, width, min(page.value("document.documentElement.scrollHeight"), TALLEST))
            save(out / f"{name}-{state}.png", page.ask("Page.captureScreenshot", format="png"))
            resize(page, width)
    if out and width == WIDTHS[0]:
        page.value(OPEN.format(state="false"))
        printed = page.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)  # inches: A4
        save(out / f"{name}.pdf", printed)
    return [*found, *heard(page, url)]


def program_of(name: str | None) -> str | None:
    """Where a browser is, by default the first of those that are known; None without one."""
    return next(filter(None, map(shutil.which, [name] if name else BROWSERS)), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the screenshots and PDFs (default: none are made)")
    parser.add_argument("--browser", help="the program (default: the first of " + ", ".join(BROWSERS) + ")")
    args = parser.parse_args()
    program = program_of(args.browser)
    if program is None:
        wanted = args.browser or ", ".join(BROWSERS)
        print(f"Nothing was checked: no {wanted} in the PATH; install Chromium, or name it by --browser")
        return SKIPPED
    if missing := [str(file) for file in args.pages if not file.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    faulty = False
    with browser(program) as page:
        for file in args.pages:
            for width in WIDTHS:
                for language in LANGUAGES:
                    found = faults_of(page, file, width, language, args.out)
                    print(f"{file} · {width} pixels · {language}: {'; '.join(found) or 'good'}", flush=True)
                    faulty |= bool(found)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
