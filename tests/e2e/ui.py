"""Prefect's UI driven in headless Chromium: what a person clicks, and what stands there then.

The selectors are those of Prefect 3.7's pages; where a page has roles and labels, these.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = Path(__file__).parents[2] / "out" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
SIZE = {"width": 1300, "height": 1000}
PATIENCE_S = 90.0


@contextlib.contextmanager
def browser(url: str, folder: Path = SCREENSHOTS) -> Iterator[Ui]:
    """A browser on a Prefect server's UI."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = chromium.new_page(viewport=SIZE)
            page.set_default_timeout(1000 * PATIENCE_S)
            yield Ui(page, url, folder)
        finally:
            chromium.close()


class Ui:
    """One page of Prefect's UI."""

    def __init__(self, page: Page, url: str, folder: Path) -> None:
        self.page = page
        self._url = url
        self._folder = folder
        self._shots = 0

    def shot(self, name: str, height: int = SIZE["height"]) -> Path:
        """Keeps a picture of the page, as tall as told."""
        self._shots += 1
        path = self._folder / f"{self._shots:02d}-{name}.png"
        self.page.set_viewport_size({**SIZE, "height": height})
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=path)
        self.page.set_viewport_size(SIZE)
        return path

    def until(self, true: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> None:
        """Waits for what the page does not wait for by itself."""
        limit = time.monotonic() + limit_s
        while not true():
            if time.monotonic() > limit:
                path = self.shot("timed-out")
                raise AssertionError(f"{what} did not come within {limit_s} s; see {path}")
            self.page.wait_for_timeout(250)

    def _button(self, name: str, within: Page | Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    # the form of a custom run

    def open_form(self, flow: str, deployment: str) -> None:
        """From the list of deployments to the form, click by click."""
        self.page.goto(f"{self._url}/deployments")
        row = self.page.locator("tr", has_text=flow)
        row.get_by_role("link", name=deployment, exact=True).first.click()
        self._button("Run").click()
        self.page.get_by_text("Custom run", exact=True).click()
        self._button("Submit").wait_for()
        self.page.locator(".schema-form-property").first.wait_for()

    def parameters(self) -> dict[str, str]:
        """The form's fields, and the help that stands with each; of groups, the group's."""
        fields = self.page.locator(".schema-form-property").all()
        texts = [
            (
                one.locator(".schema-form-property__label").first.inner_text(),
                one.locator(".p-label__description").first.inner_text(),
            )
            for one in fields
        ]
        return {label.removesuffix(" (Optional)"): text for label, text in texts}

    def form_height(self) -> int:
        """Pixels from the form's first parameter to the end of its last one."""
        boxes = [one.bounding_box() for one in self.page.locator(".schema-form-property").all()]
        tops = [box["y"] for box in boxes if box]
        ends = [box["y"] + box["height"] for box in boxes if box]
        return round(max(ends) - min(tops))

    def field(self, name: str) -> Locator:
        """A parameter's part of the form; in a group of parameters: `group.name`."""
        found: Page | Locator = self.page
        for part in name.split("."):
            label = re.compile(rf"^{re.escape(part)}( \(Optional\))?$", re.IGNORECASE)
            own = self.page.locator(".schema-form-property__label", has_text=label)
            # the innermost one: a group holds the labels of its parameters as well
            found = found.locator(".schema-form-property").filter(has=own).last
        return found

    def name_run(self, name: str) -> None:
        """Types a name for the run over the one that the form made up."""
        self.page.locator(".p-label", has_text="Run Name").locator("input").first.fill(name)

    def open_group(self, name: str) -> None:
        """Opens a group of parameters that is closed because it has its defaults."""
        change = self._button("Change", self.field(name))
        if change.is_visible():
            change.click()
            self.field(name).locator(".schema-form-property").first.wait_for()

    def fill(self, name: str, value: str) -> None:
        """Types a value into a parameter's box."""
        self._open_group_of(name)
        self.field(name).locator("textarea, input").first.fill(value)

    def _open_group_of(self, name: str) -> None:
        group, _, inside = name.partition(".")
        if inside:
            self.open_group(group)

    def value(self, name: str) -> str:
        self._open_group_of(name)
        return self.field(name).locator("textarea, input").first.input_value()

    def submit(self) -> None:
        self._button("Submit").click()

    def submit_well(self) -> str:
        """Submits the form, goes to the run's page; gives the run's id."""
        seen = self.page.get_by_text("View run", exact=True).first
        # SQLite refuses a write now and then ("database is locked"); people click again
        busy = self.page.get_by_text("Something went wrong trying to create a flow run").first
        for _ in range(5):
            self.submit()
            seen.or_(busy).first.wait_for()
            if seen.is_visible():
                break
            busy.wait_for(state="hidden")
        # the page goes to the deployment's runs by itself, which undoes a click that comes before
        self.page.wait_for_url("**/deployments/deployment/*tab=Runs*")
        # it moves as it comes, and goes after some seconds
        seen.dispatch_event("click")
        self.page.wait_for_url("**/runs/flow-run/*")
        self.page.locator(".page-heading-flow-run .state-badge").first.wait_for()
        return self.page.url.partition("/flow-run/")[2].partition("?")[0]

    def complaint(self, about: str) -> str:
        """What the UI says is wrong, under a parameter or in its corner, about some words."""
        under = self.page.locator(".p-label__message--failed", has_text=about)
        said = under.or_(self.page.locator(".p-toast__message", has_text=about)).first
        said.wait_for()
        said.scroll_into_view_if_needed()
        return said.inner_text()

    # the page of a flow run

    def open_run(self, run: str) -> None:
        self.page.goto(f"{self._url}/runs/flow-run/{run}")
        self.page.locator(".page-heading-flow-run .state-badge").first.wait_for()

    def run_name(self) -> str:
        return self.page.locator(".page-heading__crumbs .p-bread-crumbs__crumb").last.inner_text()

    def run_state(self) -> str:
        return self.page.locator(".page-heading-flow-run .state-badge").first.inner_text().strip()

    def wait_for_state(self, *names: str, limit_s: float = 120) -> None:
        """Watches the page, which refreshes itself, until it shows one of some states."""
        self.until(lambda: self.run_state() in names, f"the state {' or '.join(names)}", limit_s)

    def tab(self, name: str) -> None:
        self.page.locator(".p-tab-navigation, .p-tabs").first.get_by_text(name, exact=True).click()
        self.page.wait_for_timeout(500)

    def text(self) -> str:
        """All that stands on the page."""
        return self.page.locator("main, .app__main, body").first.inner_text()

    def see(self, words: str, limit_s: float = PATIENCE_S) -> None:
        """Waits until some words stand on the page."""
        self.until(lambda: words in self.text(), f"the words {words!r}", limit_s)

    def artifacts(self) -> list[str]:
        """The cards of the tab Artifacts: kind and name."""
        self.tab("Artifacts")
        cards = self.page.locator(".artifact-card")
        cards.first.wait_for()
        return [" ".join(card.inner_text().split("\n")[:2]) for card in cards.all()]

    def open_artifact(self, artifact: str) -> None:
        self.page.goto(f"{self._url}/artifacts/artifact/{artifact}")
        self.see("Show raw data")

    def rest(self) -> None:
        """Leaves the page: its picture of a run is drawn anew all the time, without a GPU."""
        self.page.goto("about:blank")

    def retry(self) -> None:
        """The button of a run that failed, and its confirmation."""
        self._button("Retry").click()
        self._button("Retry", self.page.get_by_role("dialog")).click()
        self.page.get_by_role("dialog").wait_for(state="hidden")

    def cancel(self) -> None:
        """The button of a run that goes on, and its confirmation."""
        self._button("Cancel").click()
        self._button("Confirm", self.page.get_by_role("dialog")).click()
        self.page.get_by_role("dialog").wait_for(state="hidden")
