"""What a person does in the browser: log in, open the experiment, compare two pipeline runs side by side."""

import shutil

import pytest

from tests.mlflow.conftest import EXPERIMENT

pytestmark = pytest.mark.slow

# Nothing but the page itself is fetched, and a test that runs as root can have no sandbox.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


def test_the_browser_is_asked_for_a_password_and_shows_nothing_without_the_right_one(browser, tracked):
    context = browser.new_context(http_credentials={"username": "admin", "password": "not the password"})
    page = context.new_page()
    assert page.goto(tracked.server.uri).status == 401
    assert EXPERIMENT not in page.content()
    context.close()


def test_two_pipeline_runs_are_compared_side_by_side(browser, tracked, tmp_path):
    server = tracked.server
    context = browser.new_context(
        http_credentials={"username": "admin", "password": server.password}, viewport={"width": 1440, "height": 1000}
    )
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(server.uri + "/#/experiments")
    # Else an experiment opens at what MLflow shows of applications of language models.
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name=EXPERIMENT).first.click()
    page.wait_for_url("**/runs?**")
    for name in tracked.runs:
        row = page.get_by_role("row").filter(has_text=name)
        row.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()

    page.wait_for_url("**/compare-runs**")
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    assert all(run_id in page.url for run_id in tracked.runs.values())
    page.get_by_text("peak_memory_mib", exact=True).last.wait_for()
    shown = page.inner_text("body")
    # A row is its name and then one column a run; runs stand in the order in which they were made.
    for row in (
        ["600-steps", "800-steps"],
        ["learning_rate", "0.02", "0.01"],
        ["seed", "1", "1"],
        ["steps", "600", "800"],
        ["stage", "pipeline", "pipeline"],
    ):
        assert row_is_there(row, shown), row
    metrics = shown[shown.rindex("Metrics") :]
    for value in ("2.4", "2.2", "800", "1000"):
        assert f"\n{value}\n" in metrics
    page.screenshot(path=tmp_path / "compare.png", full_page=True)
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    context.close()


def row_is_there(row, shown):
    words = shown.split()
    return any(words[start : start + len(row)] == row for start in range(len(words)))
