"""Chromium without a window, to test pages in; no package is needed for it.

It takes commands of the DevTools protocol (chromedevtools.github.io/devtools-protocol) through a
pipe: JSON, each message ended by a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


class Browser:
    """One page. complaints: errors of its scripts and of its policy; asked: what it fetched."""

    def __init__(self, folder):
        ours, theirs = os.pipe(), os.pipe()  # (reads, writes) of what we say, and of what it says
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir="
        # It reads from file 3 and writes to file 4, wherever ours are.
        shell = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        command = ["bash", "-c", shell, CHROMIUM, *f"{flags}{folder}".split(), "about:blank"]
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, pass_fds=(ours[0], theirs[1]), **quiet)
        os.close(ours[0]), os.close(theirs[1])
        self.to, self.of = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self.number, self.session, self.rest, self.events = 0, None, b"", []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.send("Performance.enable", timeDomain="threadTicks")
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.to.close(), self.of.close()

    def send(self, method, **parameters):
        """Say a command; its result. What happens meanwhile goes to self.events."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while (answer := self.hear()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def hear(self):
        while b"\0" not in self.rest:
            part = os.read(self.of.fileno(), 1 << 20)
            assert part, "the browser has died"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, view=""):
        """A file, at its beginning or in a view (what stands behind the #)."""
        self.events.clear()
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{path.as_uri()}#{view}")
        loaded = "performance.getEntriesByType('navigation')[0]?.loadEventEnd > 0"
        while not self.js(f"location.protocol === 'file:' && {loaded}"):
            time.sleep(0.02)

    def js(self, expression):
        """The value of an expression of JavaScript."""
        got = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def texts(self, selector):
        """What the elements say that a selector of CSS finds."""
        return self.js(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)"
        )

    def seconds(self):
        """Of processor time that the page has taken since it was opened, scripts and drawing."""
        metrics = self.send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def look(self, path, width=1280, height=900, dark=False):
        """A screenshot."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def happened(self, method):
        """What the page's events of a name say, since it was opened."""
        self.send("Runtime.evaluate", expression="0")
        return [e["params"] for e in self.events if e.get("method") == method]
