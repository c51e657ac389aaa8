"""The console as a person sees it: a real Chromium, the real service, a real network downloaded.

    python -m tests.service.browser --chromium /usr/bin/chromium --screenshot docs/images/console.png

Needs `pip install 'loomweight[browser]'` and a Chromium; `make console-check` has the former. Chooses a folder, then a
zip, then a file that is none; cancels a job; signs in to a service with keys. Fails at any error in the page.
"""

import argparse
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import safetensors.numpy
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sklearn.datasets import load_digits

from benchmarks.digits import png, service

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
KEY = "a-bootstrap-key-of-this-check-alone-0123456789"
WAIT_MS = 60_000


def images() -> list[tuple[str, bytes]]:
    """Five of each digit, by the path that a folder would have."""
    digits = load_digits()
    found: list[tuple[str, bytes]] = []
    for digit in range(10):
        for n, image in enumerate(digits.images[digits.target == digit][:5]):
            found.append((f"digit-{digit}/{n}.png", png((image / 16 * 255).astype("uint8"))))
    return found


@contextmanager
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page that fails the check at whatever goes wrong in it."""
    opened = browser.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.set_default_timeout(WAIT_MS)
    opened.goto(address)
    yield opened
    expected = ("401", "422", "415")  # a browser reports answers that the page handles
    assert not [text for text in wrong if not any(status in text for status in expected)], wrong
    opened.close()


def generate(opened: Page, address: str) -> None:
    """Press the button, wait for the end, and load what is offered."""
    opened.click("#submit")
    expect(opened.locator("#result")).to_be_visible(timeout=WAIT_MS)
    expect(opened.locator("#status")).to_have_text("The job succeeded.")
    expect(opened.locator("#models tr")).to_have_count(1)
    href = opened.get_by_role("link", name="weights").get_attribute("href")
    weights = opened.request.get(f"{address}{href}").body()
    rows = [tensor.shape[0] for tensor in safetensors.numpy.load(weights).values()]
    assert 10 in rows, "a head of ten classes"


def check_without_keys(browser: Browser, folder: Path, screenshot: Path | None) -> None:
    with service(Path("bundles/starter")) as address, page(browser, address) as opened:
        expect(opened.locator("#target option")).not_to_have_count(0)
        opened.click("#submit")
        expect(opened.locator("#problem")).to_have_text("Choose a folder or a file first.")
        opened.set_input_files("#folder", folder)
        expect(opened.locator("#chosen")).to_contain_text("50 images of 10 classes")
        generate(opened, address)
        expect(opened.locator("#problem")).to_be_hidden()
        expect(opened.locator("#baselines")).to_contain_text("the closed form")
        if screenshot:
            opened.screenshot(path=screenshot, full_page=True)

        opened.set_input_files("#file", _file("digits.zip", _zipped()))
        generate(opened, address)

        opened.set_input_files("#file", _file("digits.zip", b"PK and no more"))
        opened.click("#submit")
        expect(opened.locator("#status")).to_have_text("The job failed.")
        expect(opened.locator("#problem")).to_contain_text("zip")

        opened.set_input_files("#file", _file("digits.zip", _zipped()))
        opened.select_option("#method", "diffusion")
        opened.fill("#candidates", "64")
        opened.click("#submit")
        opened.click("#cancel")
        expect(opened.locator("#status")).to_have_text("The job was canceled.")


def check_with_keys(browser: Browser) -> None:
    os.environ |= {"LOOMWEIGHT_REQUIRE_KEYS": "true", "LOOMWEIGHT_BOOTSTRAP_KEY": KEY}
    with service(Path("bundles/starter")) as address, page(browser, address) as opened:
        assert httpx.get(f"{address}/targets").status_code == 401
        expect(opened.locator("#sign-in")).to_be_visible()
        opened.fill("#key", "not the key")
        opened.click("#sign-in button")
        expect(opened.locator("#problem")).to_be_visible()
        opened.fill("#key", KEY)
        opened.click("#sign-in button")
        expect(opened.locator("#sign-in")).to_be_hidden()
        opened.set_input_files("#file", _file("digits.zip", _zipped()))
        generate(opened, address)
        opened.click("#sign-out")
        expect(opened.locator("#sign-in")).to_be_visible()


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in images():
            archive.writestr(path, data)
    return buffer.getvalue()


def _file(name: str, data: bytes) -> Any:
    return {"name": name, "mimeType": "application/zip", "buffer": data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshot", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for path, data in images():
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_bytes(data)
        browser = playwright.chromium.launch(executable_path=given.chromium, args=[*QUIET])
        check_without_keys(browser, Path(folder), given.screenshot)
        print("without keys: a folder, a zip, a broken zip, a cancel")
        check_with_keys(browser)
        print("with keys: a wrong one, the right one, signed out")
        browser.close()


if __name__ == "__main__":
    main()
