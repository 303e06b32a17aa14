#!/usr/bin/env python3
"""Uses the page of `nibble plan --html` in headless Chromium, with the keyboard alone.

    page_browser_test.py PROGRAM [--serve]     PROGRAM is the built nibble

Speaks the W3C WebDriver protocol to chromedriver (package chromium-driver). Without it, exits 77, which
ctest shows as skipped.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

TAB, ENTER, SPACE, UP, DOWN = "\ue004", "\ue007", " ", "\ue013", "\ue015"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Browser:
    def __init__(self, base):
        self.base = base
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]}
        capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options,
                                                         "goog:loggingPrefs": {"browser": "ALL"}}}}
        self.session = self.call("POST", "/session", capabilities)["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def open(self, url):
        self.call("POST", f"/session/{self.session}/url", {"url": url})

    def run(self, script):
        return self.call("POST", f"/session/{self.session}/execute/sync", {"script": script, "args": []})

    def keys(self, text):
        actions = [{"type": step, "value": key} for key in text for step in ("keyDown", "keyUp")]
        self.call("POST", f"/session/{self.session}/actions",
                  {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def console_errors(self):
        entries = self.call("POST", f"/session/{self.session}/se/log", {"type": "browser"})
        # A page without an icon is no fault.
        return [entry["message"] for entry in entries
                if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]

    def close(self):
        self.call("DELETE", f"/session/{self.session}")


def check(condition, what):
    if not condition:
        raise AssertionError(what)


FOCUS = "const e = document.activeElement; return e.id || e.dataset.id || e.textContent;"
IDS = "return [...document.querySelectorAll('#rows tr[data-id]')].map(e => e.dataset.id);"


def use_page(browser):
    devices = browser.run("return data.devices;")
    check(len(devices) == 98, f"{len(devices)} devices in the data")
    check(len(browser.run(IDS)) == 98, "a row for each device")
    check("98 of 98" in browser.run("return document.getElementById('count').textContent;"), "the count")
    verdicts = browser.run("return [...document.querySelectorAll('#rows tr')].map(e => e.dataset.verdict);")
    order = ["fits", "tight", "offload", "does_not_fit"]
    check(verdicts == sorted(verdicts, key=order.index), "sorted by verdict at first")

    # The bar of where memory goes: parts as wide as their shares, and said in words.
    bar = browser.run("""const row = document.querySelector('tr[data-id="h200-sxm"]');
        const box = row.querySelector('.bar');
        return {label: box.getAttribute('aria-label'), width: box.clientWidth,
                parts: [...box.children].map(e => [e.className, e.getBoundingClientRect().width])};""")
    h200 = next(d for d in devices if d["id"] == "h200-sxm")["per_device"]
    check(f"weights {h200['weights'] / 1e9:.1f} GB" in bar["label"], bar["label"])
    for name, width in bar["parts"]:
        check(abs(width / bar["width"] - h200[name] / h200["total"]) < 0.02, f"the width of {name}")
    check("GB short" in browser.run("""return document.querySelector(
        'tr[data-verdict="does_not_fit"] .bar').getAttribute('aria-label');"""), "the shortfall is said")

    # By keyboard: the search is the first stop and filters while typing.
    browser.keys(TAB)
    check(browser.run(FOCUS) == "search", f"the first stop is {browser.run(FOCUS)}")
    browser.keys("mi3")
    ids = browser.run(IDS)
    check(ids and all("mi3" in name for name in ids), f"search shows {ids}")
    browser.keys("\ue003" * 3)
    check(len(browser.run(IDS)) == 98, "clearing the search shows all")
    # Vendor, class, two boxes, then the heads.
    browser.keys(TAB * 3)
    check(browser.run(FOCUS) == "holds", f"the fourth stop is {browser.run(FOCUS)}")
    browser.keys(SPACE)
    check(browser.run("return [...document.querySelectorAll('#rows tr')].every("
                      "e => e.dataset.verdict !== 'does_not_fit');"), "only what holds the model")
    browser.keys(TAB + TAB)
    check(browser.run(FOCUS).startswith("device"), f"then the heads, not {browser.run(FOCUS)}")
    browser.keys(ENTER)
    names = browser.run("return [...document.querySelectorAll('#rows tr[data-id]')].map("
                        "e => data.devices.find(d => d.id === e.dataset.id).name.toLowerCase());")
    check(names == sorted(names), "sorted by name")
    check(browser.run("return document.querySelector('th').getAttribute('aria-sort');") == "ascending", "aria-sort")
    browser.keys(ENTER)
    check(browser.run("return document.querySelector('th').getAttribute('aria-sort');") == "descending", "turned round")

    # Into the table: arrows move, Enter opens the command.
    browser.keys(TAB * 12)
    rows = browser.run(IDS)
    check(browser.run(FOCUS) == rows[0], f"the first row has the focus, not {browser.run(FOCUS)}")
    browser.keys(DOWN + DOWN + UP)
    check(browser.run(FOCUS) == rows[1], "arrows move by one row")
    browser.keys(ENTER)
    detail = browser.run("return document.querySelector('tr.detail').textContent;")
    wanted = next(d for d in devices if d["id"] == rows[1])["launch"] or "no command"
    check(detail.startswith(wanted), f"the command: {detail}")
    check(browser.run("return document.activeElement.getAttribute('aria-expanded');") == "true", "aria-expanded")
    browser.keys(ENTER)
    check(browser.run("return document.querySelectorAll('tr.detail').length;") == 0, "closed again")

    # Nothing was asked of any other place, and nothing failed.
    check(browser.run("return performance.getEntriesByType('resource').filter("
                      "e => !e.name.includes('favicon')).length;") == 0, "no outside resources")
    check(not browser.console_errors(), f"console: {browser.console_errors()}")


def wait_for(address, seconds=30):
    for _ in range(seconds * 10):
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {address}")


def main(arguments):
    program, serve = arguments[0], "--serve" in arguments
    driver = shutil.which("chromedriver")
    if driver is None:
        print("skipped: no chromedriver (package chromium-driver)")
        return 77
    port = free_port()
    started = [subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            wait_for(f"http://127.0.0.1:{port}/status")
            if serve:
                page_port = free_port()
                url = f"http://127.0.0.1:{page_port}/"
                started.append(subprocess.Popen([program, "plan", "deepseek-r1", "--serve", str(page_port)],
                                                stdout=subprocess.DEVNULL))
                wait_for(url)
            else:
                page = Path(folder, "plan.html")
                subprocess.run([program, "plan", "deepseek-r1", "--html", str(page)], check=True,
                               stdout=subprocess.DEVNULL)
                url = page.as_uri()
            browser = Browser(f"http://127.0.0.1:{port}")
            try:
                browser.open(url)
                use_page(browser)
            finally:
                browser.close()
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=20)
    print("the page works by keyboard" + (", served" if serve else ""))
    return 0


if __name__ == "__main__":
    os.environ.pop("http_proxy", None)
    sys.exit(main(sys.argv[1:]))
