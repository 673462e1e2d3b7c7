# SPDX-License-Identifier: Apache-2.0
"""The dashboard in a real browser: a sentence typed, a robot that arrives, a stop that stops."""

import math
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")
pytest.importorskip("nicegui", reason="no NiceGUI here: needs the extra 'dashboard'")
pytest.importorskip(
    "playwright.sync_api", reason="no Playwright here: needs the extra 'browser-test'"
)

from dashboard_stand_ins import Dashboard, Truth, never_read
from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = os.environ.get("NVILA_SCREENSHOTS")  # a folder: keep pictures of what was seen there
SEED, OTHER_SEED = 900_011, 900_000  # short episodes
NUM_TRIES = 3  # the shipped model is small, and a busy machine shows it other frames each time
DEADLINE_MS = 90_000  # machines that run tests are busy
pytestmark = [
    pytest.mark.ros,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def running(shared_ros, start_node):
    """Simulator, navigator with the shipped model, and dashboard."""
    start_node(shared_ros, "simulator", "-p", f"seed:={OTHER_SEED}")
    start_node(shared_ros, "navigator", "-p", "use_sim_time:=true")
    dashboard, truth = Dashboard(shared_ros), Truth(shared_ros)
    yield dashboard, truth
    dashboard.end()
    assert dashboard.process.returncode == 0, dashboard.lines
    assert not any("Traceback" in line for line in dashboard.lines), dashboard.lines


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Chromium has no sandbox for root, which CI containers are.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield made
        made.close()


@pytest.fixture
def page(running, browser):
    made = open_page(running[0], browser)
    yield made
    assert made.outside == set(), "everything is served from here"
    assert not made.errors
    made.close()


def open_page(dashboard, browser, width=1400, height=900):
    made = browser.new_page(viewport={"width": width, "height": height})
    made.set_default_timeout(DEADLINE_MS)
    made.outside, made.errors = set(), []
    made.on("request", lambda request: note_host(made, request.url, dashboard.port))
    made.on("pageerror", lambda error: made.errors.append(str(error)))
    made.goto(dashboard.url, wait_until="domcontentloaded")
    part(made, "stop").wait_for()
    return made


def note_host(page, url, port):
    if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")):
        page.outside.add(url)


def part(page, name):
    return page.locator(f"[data-test={name}]").last


def wait_for_text(page, name, *words):
    pattern = re.compile("|".join(words), re.IGNORECASE)
    sync_api.expect(part(page, name)).to_have_text(pattern, timeout=DEADLINE_MS)


def keep(page, name):
    if PICTURES:
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(500)
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def make_ready(page):
    """Standing, nothing to clear."""
    wait_for_text(page, "phase", "idle", "emergency stop")
    if part(page, "clear").is_visible():
        part(page, "clear").click()
    wait_for_text(page, "phase", "idle")


def drive_once(page, truth, waiting):
    """Types the episode's instruction and watches until the model says that it has arrived."""
    before = truth.decisions
    page.fill("input[data-test=instruction]", truth.episode["instruction"])
    part(page, "go").click()
    wait_for_text(page, "phase", "moving")
    waiting(lambda: truth.decisions > before + 4, "decisions", 90.0)
    keep(page, "dashboard")
    wait_for_text(page, "result", r"SUCCEEDED \(1\)")


def test_somebody_types_where_to_go_and_the_robot_arrives(running, page, browser, waiting):
    dashboard, truth = running
    make_ready(page)
    page.fill("input[data-test=seed]", str(SEED))
    part(page, "move").click()
    waiting(lambda: truth.episode.get("seed") == SEED, "another apartment", 90.0)
    wait_for_text(page, "apartment", str(SEED))
    for _ in range(NUM_TRIES):
        drive_once(page, truth, waiting)
        if math.dist(truth.place, truth.episode["goal"]) < 1.0:
            break
        part(page, "reset").click()
    assert math.dist(truth.place, truth.episode["goal"]) < 1.0
    wait_for_text(page, "sentence", "stop")
    for name in ("camera", "strip"):
        page.wait_for_function(
            f"document.querySelector('[data-test={name}] img').naturalWidth > 100"
        )
    phone = open_page(dashboard, browser, 390, 844)
    wait_for_text(phone, "result", "SUCCEEDED")
    phone.wait_for_function("document.documentElement.scrollWidth <= 390")  # once it has settled
    stop = part(phone, "stop").bounding_box()
    assert stop["x"] >= 0 and stop["x"] + stop["width"] <= 390 and stop["height"] >= 30
    phone.wait_for_timeout(1000)
    keep(phone, "dashboard_phone")
    phone.close()


def test_the_emergency_stop_is_zero_velocity(running, page, waiting):
    _, truth = running
    make_ready(page)
    page.fill("input[data-test=seed]", str(OTHER_SEED))
    part(page, "move").click()
    waiting(lambda: truth.episode.get("seed") == OTHER_SEED, "another apartment", 90.0)
    wait_for_text(page, "apartment", str(OTHER_SEED))
    part(page, "suggestion").click()
    wait_for_text(page, "phase", "idle")
    page.keyboard.press("Escape")
    part(page, "go").click()
    waiting(truth.is_moving, "a robot that moves", 60.0)
    part(page, "stop").click()
    waiting(truth.is_still, "a robot that stands", 10.0)
    wait_for_text(page, "speed", r"0\.00 m/s, 0\.00 rad/s")
    wait_for_text(page, "phase", "emergency stop")
    wait_for_text(page, "result", r"EMERGENCY_STOP \(8\)")
    keep(page, "dashboard_stopped")
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        assert truth.is_still()
    part(page, "clear").click()
    wait_for_text(page, "phase", "idle")


def test_pause_resume_and_cancel(running, page, waiting):
    _, truth = running
    make_ready(page)
    part(page, "reset").click()
    part(page, "suggestion").click()
    part(page, "go").click()
    waiting(truth.is_moving, "a robot that moves", 60.0)
    part(page, "pause").click()
    wait_for_text(page, "phase", "paused")
    waiting(truth.is_still, "a robot that stands", 10.0)
    part(page, "resume").click()
    waiting(truth.is_moving, "a robot that goes on", 60.0)
    part(page, "cancel").click()
    wait_for_text(page, "result", r"CANCELED \(2\)")
    waiting(truth.is_still, "a robot that stands", 10.0)


def test_instructions_that_cannot_be_used_are_answered(page):
    make_ready(page)
    part(page, "go").click()
    page.get_by_text("the instruction is empty").wait_for()
    page.fill("input[data-test=instruction]", "Go <image> there.")
    part(page, "go").click()
    page.get_by_text("remove it").or_(page.get_by_text("token")).first.wait_for()
    page.evaluate("document.querySelector('input[data-test=instruction]').maxLength = 10000")
    page.fill("input[data-test=instruction]", "go " * 300)
    part(page, "go").click()
    page.get_by_text("at most 500").wait_for()


def test_two_browsers_see_the_same_and_one_that_never_reads_disturbs_nobody(
    running, page, browser, waiting
):
    dashboard, truth = running
    make_ready(page)
    other = open_page(dashboard, browser, 800, 600)
    ended, unread_bytes = threading.Event(), []
    reader = threading.Thread(target=never_read, args=(dashboard, ended, unread_bytes))
    reader.start()
    try:
        before, memory_bytes = truth.decisions, dashboard.memory_bytes()
        part(page, "reset").click()
        part(page, "suggestion").click()
        part(page, "go").click()
        waiting(lambda: truth.decisions > before + 3, "decisions", 90.0)
        for one in (page, other):
            source = one.locator("[data-test=camera] img").get_attribute("src")
            sync_api.expect(one.locator("[data-test=camera] img")).not_to_have_attribute(
                "src", source, timeout=DEADLINE_MS
            )
        part(other, "stop").click()
        waiting(truth.is_still, "a robot that stands", 10.0)
        wait_for_text(page, "phase", "emergency stop")
        page.wait_for_timeout(20_000)  # longer than a browser may stay away
        assert dashboard.memory_bytes() - memory_bytes < 64e6
        assert max(unread_bytes) > 1000, "the silent one was sent something"
        wait_for_text(other, "phase", "emergency stop")
    finally:
        ended.set()
        reader.join()
        other.close()
