"""The report in a real browser."""

import re
import shutil
import subprocess

import pytest
from matplotlib import image

from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow


def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.mark.browser
@pytest.mark.skipif(browser() is None, reason="no chromium, chromium-browser or google-chrome")
def test_a_browser_shows_the_page_with_every_picture_and_no_error(reported, tmp_path):
    page, folder = reported
    # a copy that says in its own title how many pictures were decoded, and fit a phone's width
    probe = "onload = () => { const all = [...document.images]; const body = document.body;"
    probe += " body.style.boxSizing = 'border-box'; body.style.width = '400px';"
    probe += " const end = body.getBoundingClientRect().right; document.title = "
    probe += "`${all.filter(i => i.complete && i.naturalWidth > 99"
    probe += " && i.getBoundingClientRect().right <= end).length} of ${all.length}` }"
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", f"<script>{probe}</script></body>"))
    pictures = page.count("<img")

    dom, _ = browse(probed, tmp_path, "--dump-dom")
    assert re.search(r"<title>(.*?)</title>", dom)[1] == f"{pictures} of {pictures}"

    screenshot = tmp_path / "page.png"
    _, log = browse(
        folder / "report.html", tmp_path, f"--screenshot={screenshot}", "--window-size=1200,2400"
    )
    assert "CONSOLE" not in log
    pixels = image.imread(screenshot)[..., :3]
    top, bottom = pixels[:800], pixels[1_200:]
    assert top.std() > 0.05
    assert bottom.std() > 0.05


def browse(path, folder, *options):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run(
        [browser(), *flags, *options, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout, done.stderr
