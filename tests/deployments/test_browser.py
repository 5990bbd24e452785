"""What people do in the Prefect UI, done in a real browser against a real `gguf-flow serve`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as NotYet

from tests.deployments.served import Served
from tests.deployments.test_serve import begin_final

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PICTURES = os.environ.get("UI_PICTURES")
"""A folder for screenshots; `docs` for those of the README."""
RUN_S = 90

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 900}, base_url=f"http://127.0.0.1:{served.port}")
        page.set_default_timeout(30_000)
        yield page
        browser.close()


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.wait_for_timeout(2000)  # graphs are drawn in steps
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def open_form(page: Page, deployment: str) -> None:
    page.goto("/deployments")
    page.get_by_role("link", name=deployment, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_role("button", name="Submit").wait_for()


def press(page: Page, button: Locator, request: str) -> None:
    """As a person does: again where the server says that its database is busy (503)."""
    for again in range(5):
        with page.expect_response(f"**/{request}") as answer:
            button.dispatch_event("click") if again else button.click()  # what is said of a 503 lies over it
        if answer.value.status != 503:
            return


def submit(page: Page) -> str:
    """Press Submit, and open the run; returns its id."""
    press(page, page.get_by_role("button", name="Submit"), "create_flow_run")
    page.get_by_role("button", name="View run").first.dispatch_event("click")  # it slides in, and is hard to hit
    page.wait_for_url("**/runs/flow-run/**")
    return page.url.rpartition("/")[2].partition("?")[0]


def await_state(page: Page, state: str) -> None:
    expect(page.get_by_text(state, exact=True).first).to_be_visible(timeout=RUN_S * 1000)


def field(page: Page, title: str) -> Locator:
    """The form's last field with this title: labels lie in one another, the innermost comes last."""
    return page.locator(".p-label", has=page.get_by_text(title, exact=True)).last.locator("textarea, input").first


def choose(page: Page, control: Locator, option: str) -> None:
    """From a drop-down, by keyboard: it is closed again at once under this browser's mouse."""
    for _ in range(5):
        control.focus()
        page.wait_for_timeout(300)
        page.keyboard.press("Space")
        try:
            page.get_by_role("option", name=option, exact=True).click(timeout=3000)
        except NotYet:
            continue
        page.keyboard.press("Escape")
        page.mouse.click(1290, 20)
        return
    raise AssertionError(f"no option '{option}'")


def graph_edges(served: Served, run_id: str) -> set[tuple[str, str]]:
    """(from, to) by task name, of the graph that the run's page draws."""
    nodes = dict(served.api.get(f"/flow_runs/{run_id}/graph-v2").json()["nodes"])
    labels = {id: node["label"] for id, node in nodes.items()}
    return {(labels[id], labels[child["id"]]) for id, node in nodes.items() for child in node["children"]}


def test_base_pipeline_is_run_from_its_form_and_its_answer_opened(page: Page, served: Served) -> None:
    open_form(page, "base")
    page.locator("textarea").first.fill("Why is the sky blue?")
    run_id = submit(page)
    await_state(page, "Completed")
    picture(page, "run")
    edges = graph_edges(served, run_id)
    assert {("draft: small", "panel: small"), ("draft: small", "panel: other")} <= edges, "fan-out"
    assert {("panel: small", "panel: concat"), ("panel: other", "panel: concat")} <= edges, "merge"

    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
    page.get_by_text("base-final-answer").first.click()
    answer = served.session_of(run_id).joinpath("final.txt").read_text().split()[0]
    expect(page.get_by_text("Why is the sky blue?").first).to_be_visible()
    expect(page.get_by_text(answer).first).to_be_visible()
    picture(page, "artifact")


def test_rerun_shows_what_differs_from_its_parent(page: Page, served: Served) -> None:
    first = served.start("base", question="Why is the sky blue?")
    assert served.ended(first)["state_type"] == "COMPLETED", served.said
    open_form(page, "rerun")
    field(page, "session").fill(served.session_of(first).name)
    field(page, "from_stage").fill("final")
    add = page.get_by_role("button", name="Add item")
    add.last.click()
    field(page, "Stage").fill("final")
    add.first.click()  # of the parameters, which lie in the change
    field(page, "Parameters (Optional)").fill("max_tokens=20")
    submit(page)
    await_state(page, "Completed")
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
    page.get_by_text("base-diff").first.click()
    expect(page.get_by_text("The same answer: 1 draft: small, 2 panel: small").first).to_be_visible()
    expect(page.get_by_text("(not set)", exact=True)).to_have_css("text-decoration-line", "line-through")
    picture(page, "diff")


def test_two_stage_pipeline_is_built_in_the_form_and_run(page: Page, served: Served) -> None:
    open_form(page, "manual")
    page.locator("textarea").first.fill("Name a colour.")
    add = page.get_by_role("button", name="Add item")
    empty = page.locator("button.p-select-button__control", has_text="No items selected")
    add.last.click()
    choose(page, empty, "small")
    field(page, "Name (Optional)").fill("idea")
    field(page, "Most tokens (Optional)").fill("5")
    page.get_by_text("Run Name").scroll_into_view_if_needed()
    picture(page, "manual")
    add.last.click()
    expect(page.get_by_text("Models", exact=True)).to_have_count(2)
    choose(page, empty, "other")
    run_id = submit(page)
    await_state(page, "Completed")
    assert {"idea: small", "stage2: other"} <= {name for name, _ in served.tasks(run_id)}
    assert ("idea: small", "stage2: other") in graph_edges(served, run_id)


def test_form_refuses_a_pipeline_without_models(page: Page, served: Served) -> None:
    open_form(page, "manual")
    page.locator("textarea").first.fill("Name a colour.")
    page.get_by_role("button", name="Add item").last.click()
    before = page.url
    page.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(2000)
    assert page.url == before


def test_retry_button_runs_only_what_failed(page: Page, served: Served) -> None:
    run_id = begin_final(served)
    served.kill_models()
    page.goto(f"/runs/flow-run/{run_id}")
    await_state(page, "Failed")
    n_tasks = len(served.tasks(run_id))
    page.get_by_role("button", name="Retry").click()
    confirm = page.locator("[role=dialog], .p-modal").get_by_role("button", name="Retry")
    confirm.click()
    served.wait_for(lambda: served.state_of(run_id)["run_count"] == 2)
    assert served.ended(run_id)["state_type"] == "COMPLETED"
    again = served.tasks(run_id)[n_tasks:]
    assert ("draft: small", "Cached") in again
    assert ("final: small", "Completed") in again


def test_suspended_run_is_resumed_with_an_edited_answer(page: Page, served: Served) -> None:
    run_id = served.start("approved", question="Name a colour.")
    served.wait_for(lambda: served.state_of(run_id)["state_name"] == "Suspended")
    page.goto(f"/runs/flow-run/{run_id}")
    page.get_by_role("button", name="Resume").click()
    dialog = page.locator("[role=dialog], .p-modal")
    dialog.locator("textarea").first.fill("The colour is ultramarine.")
    picture(page, "approval")
    press(page, dialog.get_by_role("button", name="Submit"), "resume")
    assert served.ended(run_id)["state_type"] == "COMPLETED", served.said
    session = served.session_of(run_id)
    assert "The colour is ultramarine." in (session / "step2.json").read_text()
    assert '"edited": true' in (session / "step1_approval.json").read_text()
