"""The film's page in headless Chromium, opened from disk: what is seen, heard by a screen reader, and typed.

axe-core, which finds faults of accessibility, comes inside axe-playwright-python.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import Inventory, take_inventory
from storyreel.film.page import GrowingPage, Take, film_page
from storyreel.film.recorded import recorded_plan
from storyreel.film.store import Store
from tests.test_rendering import make

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.usefixtures("fake_model", "ffmpeg"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

LONG = "a very long word " + "x" * 1500 + " and بيت الثعلب 🦊"
SCENES = [
    ["a park", "a fox sits"],
    ["a park </script><script>alert(1)</script>", "\"'><img src=x onerror=alert(1)> {{ 7 }}"],
    ["a lake", "it swims"],
    ["a lake", "it swims on"],
]
AXE = "axe_playwright_python"
FOCUSABLE = "a[href], button:not(:disabled), summary, video"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open a page from disk; what it asks of a network, its errors and its dialogs fail the test."""
    faults: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []

    def open_page(path: Path, width: int = 1280, height: int = 740, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on(
            "request", lambda r: faults.append(r.url) if not r.url.startswith(("file:", "data:")) else None
        )
        page.clock.install()
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def film(out: Path, scenes: list[list[str]] = SCENES) -> FilmFolder:
    """A finished film with weights that vary."""
    escaped = [[text.replace("{", "{{").replace("}", "}}") for text in scene] for scene in scenes]
    told = {"title": "Foxes <b>", "scenes": escaped, "render": {"model": "fake"}}
    make(out, json.dumps(told, ensure_ascii=False), steps=4, method=("weighting=true",))
    folder = FilmFolder(out / "foxes", "foxes")
    folder.load()
    return folder


def inventory(folder: FilmFolder) -> Inventory:
    """What is there of a finished film."""
    assert folder.present is not None
    plan = recorded_plan(folder.present, folder.name)
    assert plan is not None
    return take_inventory(plan, folder.present.facts, Store(folder.segments).record)


def with_everything(folder: FilmFolder) -> Path:
    """The page of a film with takes, a report and a sheet."""
    assert folder.present is not None
    there = inventory(folder)
    video = there.video[1]
    takes = [Take(n, video.decided["still"], f"segments/{video.file}", n == 2) for n in (1, 2)]
    (folder.path / "eval.html").write_text(f'<a data-film="{folder.present.film["sha256"]}">')
    (folder.path / "sheet.png").touch()
    folder.page_path.write_text(film_page(folder, there, folder.present.film, {1: takes}))
    return folder.page_path


def growing(folder: FilmFolder, place: Path, done: int) -> Path:
    """The page of the same film in another place, of which some scenes are there."""
    there = inventory(folder)
    (place / "segments").mkdir(parents=True)
    for index in range(done, len(there.plan.segments)):
        del there.latents[index, 1], there.video[index]
    for record in there.video.values():
        shutil.copy(folder.segments / record.file, place / "segments")
    GrowingPage(FilmFolder(place, folder.name), there).write()
    return place / "index.html"


def violations(page: Any) -> list[str]:
    """What axe-core finds, in all its rules, with everything opened that opens."""
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.evaluate(resources.files(AXE).joinpath("axe.min.js").read_text("utf-8"))
    found = page.evaluate("axe.run()")
    return [f"{v['id']}: {[n['html'] for n in v['nodes']]}" for v in found["violations"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (768, "light"), (1280, "light"), (1280, "dark")]
)
def test_axe_finds_nothing_and_nothing_lies_outside(
    tmp_path: Path, opened: Open, width: int, scheme: str
) -> None:
    """Colours change nothing of where things lie; in the dark, the quick test looks at a phone."""
    folder = film(tmp_path, [*SCENES, [LONG[:1800], LONG[:1800]]])
    for path in (with_everything(folder), growing(folder, tmp_path / "growing", 2)):
        page = opened(path, width, color_scheme=scheme)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_axe_finds_nothing_on_a_phone_in_the_dark(tmp_path: Path, opened: Open) -> None:
    page = opened(with_everything(film(tmp_path)), 360, color_scheme="dark")
    assert violations(page) == []
    page.evaluate("document.documentElement.style.setProperty('--soft', '#333')")
    assert violations(page) != []  # it does look


def test_a_scene_is_played_from_its_beginning_and_said_to_be_the_current_one(
    tmp_path: Path, opened: Open
) -> None:
    page = opened(film(tmp_path).page_path)
    current = "[...document.querySelectorAll('[aria-current=true]')].map((b) => b.ariaLabel)"
    assert page.evaluate(current) == ["Play scene 1, at 0:00"]
    page.get_by_role("button", name="Play scene 3").click()
    page.wait_for_function("document.querySelector('video').currentTime >= 1")
    assert page.evaluate(current) == ["Play scene 3, at 0:01"]
    assert page.locator("#now").inner_text().startswith("Scene 3 of 4")
    page.wait_for_function("document.querySelector('#scene-4 [aria-current]')")  # it goes on by itself
    assert page.evaluate("document.querySelector('video').getAttribute('src')") == "foxes.mp4"
    page.get_by_role("button", name="Previous scene").click()
    assert page.evaluate(current) == ["Play scene 3, at 0:01"]
    page.wait_for_function("document.querySelector('video').currentTime < 1.5")


def test_a_take_is_played_from_its_own_file_and_the_film_afterwards(tmp_path: Path, opened: Open) -> None:
    page = opened(with_everything(film(tmp_path)))
    page.get_by_role("button", name="Play take 1 of scene 2").click()
    source = "document.querySelector('video').getAttribute('src')"
    assert page.evaluate(source).startswith("segments/02-")
    page.wait_for_function("document.querySelector('video').readyState > 0")
    assert page.evaluate("document.querySelector('video').duration") == pytest.approx(0.5, abs=0.1)
    assert page.evaluate("document.querySelector('#scene-2 .still[aria-current]') !== null")
    page.get_by_role("button", name="Play scene 4").click()
    page.wait_for_function("document.querySelector('video').currentTime >= 1.5")
    assert page.evaluate(source) == "foxes.mp4"


@pytest.mark.parametrize("width", [360, 1280])
def test_the_player_stays_in_view(tmp_path: Path, opened: Open, width: int) -> None:
    page = opened(film(tmp_path).page_path, width, 700)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.evaluate("document.querySelector('#scene-4').scrollIntoView()")
    page.wait_for_function("scrollY > 100")
    box = page.locator(".stage video").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 700


def test_the_captions_have_a_cue_per_scene(tmp_path: Path, opened: Open) -> None:
    page = opened(with_everything(film(tmp_path)))
    read = """() => new Promise((done) => {
        const { track } = document.querySelector("track");
        track.mode = "showing";
        const look = () => track.cues?.length
            ? done([...track.cues].map((c) => [c.startTime, c.endTime, c.getCueAsHTML().textContent]))
            : requestAnimationFrame(look);
        look();
    })"""
    found = page.evaluate(read)
    assert found == [[i / 2, (i + 1) / 2, "\n".join(scene)] for i, scene in enumerate(SCENES)]
    page.get_by_role("button", name="Play scene 3").click()
    active = "[...document.querySelector('track').track.activeCues].map((c) => c.text)"
    page.wait_for_function(f"{active}.includes('a lake\\nit swims')")
    page.get_by_role("button", name="Play take 2 of scene 2").click()
    page.wait_for_function("document.querySelector('track').track.cues?.length === 1")
    assert page.evaluate(read) == [[0, 0.5, "\n".join(SCENES[1])]]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_keyboard_reaches_everything_where_it_can_be_seen(
    tmp_path: Path, opened: Open, width: int
) -> None:
    page = opened(with_everything(film(tmp_path)), width, 700, reduced_motion="reduce")
    wanted = page.evaluate(f"document.querySelectorAll('{FOCUSABLE}').length")
    page.evaluate(f"document.querySelectorAll('{FOCUSABLE}').forEach((e, i) => {{ e.dataset.n = i; }})")
    look = """() => {
        const of = document.activeElement, box = of.getBoundingClientRect();
        const under = of.closest(".board") && innerWidth < 1000
            ? document.querySelector(".stage").getBoundingClientRect().bottom : 0;
        const visible = box.top >= under - 1 && box.top < innerHeight;
        return [of.dataset.n, getComputedStyle(of).outlineStyle, visible];
    }"""
    styles: dict[int, str] = {}
    hidden: list[tuple[str, int]] = []
    for key in ["Tab"] * 50 + ["Shift+Tab"] * 40:  # up again, things might lie under the player
        page.keyboard.press(key)
        number, style, visible = page.evaluate(look)
        if number is not None:
            styles.setdefault(int(number), style)  # the controls inside the player have rings of their own
            hidden += [] if visible else [(key, int(number))]
    assert sorted(styles) == list(range(wanted))
    assert [number for number, style in styles.items() if style in ("none", "")] == []
    assert hidden == []


def test_keys_go_from_scene_to_scene_where_the_focus_is(tmp_path: Path, opened: Open) -> None:
    page = opened(film(tmp_path).page_path)
    label = "document.activeElement.ariaLabel"
    page.keyboard.press("j")
    assert page.evaluate("document.querySelector('video').currentTime") == 0  # nothing has the focus
    page.get_by_role("button", name="Play scene 2").focus()
    page.keyboard.press("j")
    assert page.evaluate(label) == "Play scene 3, at 0:01"
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert page.evaluate(label) == "Play scene 1, at 0:00"
    page.keyboard.press("Control+j")
    assert page.evaluate(label) == "Play scene 1, at 0:00"
    page.locator(".stage video").focus()
    page.keyboard.press("j")
    page.wait_for_function("document.querySelector('video').currentTime >= 0.5")
    assert page.evaluate("document.querySelector('#scene-2 [aria-current]') !== null")


def test_an_unfinished_page_shows_by_itself_what_comes(tmp_path: Path, opened: Open) -> None:
    folder, place = film(tmp_path), tmp_path / "growing"
    page = opened(growing(folder, place, 1))
    status = page.get_by_role("status")
    enabled = "document.querySelectorAll('.still:not(:disabled)').length"
    assert page.evaluate(enabled) == 1
    assert "1 of 4 scenes" in status.inner_text()
    page.evaluate("window.mine = true")  # a reload would lose it
    videos = [record.file for record in inventory(folder).video.values()]
    for count, name in enumerate(videos[1:], 2):
        shutil.copy(folder.segments / name, place / "segments")
        for _ in range(100):
            page.clock.run_for(3100)
            if page.evaluate(enabled) == count:
                break
            page.wait_for_timeout(20)
        assert f"{count} of 4 scenes" in status.inner_text()
    assert "being joined" in status.inner_text()
    page.get_by_role("button", name="Play scene 3").click()
    page.wait_for_function("document.querySelector('video').currentTime > 0")
    page.wait_for_function("document.querySelector('#scene-4 [aria-current]')")  # one after the other
    shutil.copy(folder.film_path, place)
    shutil.copy(folder.page_path, place)
    for _ in range(100):
        page.clock.run_for(3100)
        if "complete" in status.inner_text():
            break
        page.wait_for_timeout(20)
    assert page.evaluate("window.mine")
    page.get_by_role("link", name="Show it").click()
    page.wait_for_function("document.querySelector('video').getAttribute('src') === 'foxes.mp4'")
    assert page.get_by_role("status").count() == 0


def test_a_page_with_nothing_yet_begins_with_the_first_scene(tmp_path: Path, opened: Open) -> None:
    folder, place = film(tmp_path), tmp_path / "growing"
    page = opened(growing(folder, place, 0))
    assert page.evaluate("document.querySelectorAll('.still:not(:disabled)').length") == 0
    shutil.copy(folder.segments / inventory(folder).video[0].file, place / "segments")
    for _ in range(100):
        page.clock.run_for(3100)
        if page.evaluate("document.querySelector('.stage video').readyState") > 0:
            break
        page.wait_for_timeout(20)
    assert page.evaluate("document.querySelector('.stage video').getAttribute('src')").startswith(
        "segments/01-"
    )


def test_motion_is_as_the_reader_wants_it(tmp_path: Path, opened: Open) -> None:
    path = film(tmp_path).page_path
    how = "getComputedStyle(document.documentElement).scrollBehavior"
    assert opened(path, reduced_motion="no-preference").evaluate(how) == "smooth"
    assert opened(path, reduced_motion="reduce").evaluate(how) == "auto"
