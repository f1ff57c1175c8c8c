"""The report of a comparison works in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from sae_binary_ext.commands import LatentScore
from sae_binary_ext.commands.compare.compare_page import LatentView, write_comparison_report
from sae_binary_ext.commands.interpret.interpret_page import (
    by_coder_and_judge,
    read_interpretability,
    write_interpretation,
)
from sae_binary_ext.measure import Candidate, ComparedCoder, Site
from sae_binary_ext.measure.comparison import RunningLosses
from sae_binary_ext.measure.documents import document_weights
from sae_binary_ext.measure.samples import predictability
from tests.measure.test_figures import activations, coders, run

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no chromium and chromedriver on this machine"
)
NAMES = ("binary", "stock", "stock again")
VALUE_BITS = {"binary": 0.0, "stock": 2.5, "stock again": 3.5}
CAT = [("the ", False), ("cat", True), (" sat", False), ("\n", True)]
LATENTS = [
    LatentView(7, 0.02, [CAT], ["dog", " cow"], [("stock", 5, 0.876), ("other", 1, -0.1)]),
    LatentView(3, 0.5, [[("</script><b>bold", True), ("&amp;", False)]], ["fox"], []),
    LatentView(12, 0.0, [], ["owl"], []),
]


def compared() -> list[ComparedCoder]:
    losses = RunningLosses()
    rows = torch.tensor([[10.0, 20, 90, 60, 30, 11, 5], [10, 22, 95, 61, 33, 11, 6]])
    losses.add(rows, document_weights([0, 1]))
    found: list[ComparedCoder] = []
    for name in NAMES:
        coder = coders()[name.split()[0]]
        running, variance = run(coder, activations() + 0.1 * len(found), 4)
        figures = running.figures(variance)
        candidate = Candidate(name, Path(), coder, Site("blocks.1.hook_in", "blocks.1.hook_in"))
        samples = running.samples
        predictable = predictability(samples)
        own = figures, losses.figures(), VALUE_BITS[name], samples, predictable, {}
        found.append(ComparedCoder(candidate, *own))
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    settings = {"model": "a/model", "dataset": "some text"}
    write_comparison_report(compared(), [LATENTS, LATENTS[:2], []], settings, path)
    return path


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(str(DRIVER))) as browser:
        browser.set_window_size(1280, 900)
        browser.get(report.as_uri())
        yield browser
        assert browser.get_log("browser") == []
        entries = [json.loads(entry["message"]) for entry in browser.get_log("performance")]
        asked = [
            entry["message"]["params"]["request"]["url"]
            for entry in entries
            if entry["message"]["method"] == "Network.requestWillBeSent"
        ]
        assert report.as_uri() in asked
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def column(page: Any, place: int) -> list[str]:
    cells = page.find_elements(By.CSS_SELECTOR, f"table.sortable td:nth-child({place})")
    return [cell.get_attribute("data-value") for cell in cells]


@needs_browser
@pytest.mark.integration
def test_the_table_sorts_both_ways(page: Any):
    assert column(page, 1) == list(NAMES)
    heads = page.find_elements(By.CSS_SELECTOR, "table.sortable th")
    places = {head.text: place for place, head in enumerate(heads, 1)}
    fvu = places["FVU"]
    given = [float(value) for value in column(page, fvu)]
    assert len(set(given)) == 3
    heads[fvu - 1].find_element(By.TAG_NAME, "button").click()
    assert [float(value) for value in column(page, fvu)] == sorted(given)
    assert heads[fvu - 1].get_attribute("aria-sort") == "ascending"
    heads[fvu - 1].find_element(By.TAG_NAME, "button").click()
    assert [float(value) for value in column(page, fvu)] == sorted(given, reverse=True)
    heads[0].find_element(By.TAG_NAME, "button").click()
    assert column(page, 1) == list(NAMES)


@needs_browser
@pytest.mark.integration
def test_latents_are_searched_sorted_and_opened(page: Any):
    def listed() -> list[str]:
        buttons = page.find_elements(By.CSS_SELECTOR, "#list button")
        return [button.get_attribute("data-latent") for button in buttons]

    shown = page.find_element(By.ID, "latent")
    assert listed() == ["3", "7", "12"]
    assert shown.find_element(By.TAG_NAME, "mark").text == "</script><b>bold"
    Select(page.find_element(By.ID, "order")).select_by_value("rising")
    assert listed() == ["12", "7", "3"]
    assert "on none of the tokens" in shown.text
    page.find_element(By.CSS_SELECTOR, '#list [data-latent="7"]').click()
    assert "Latent 7, active on 2.0% of tokens" in shown.text
    assert [mark.text for mark in shown.find_elements(By.TAG_NAME, "mark")] == ["cat", "↵"]
    assert "Fires most like stock 5 (0.88)other 1 (-0.10)" in shown.text
    search = page.find_element(By.ID, "search")
    for wanted, found in (("the cat SAT", ["7"]), ("fox", ["3"]), ("12", ["12"]), ("zebra", [])):
        search.clear()
        search.send_keys(wanted)
        assert listed() == found
        assert page.find_element(By.ID, "count").text == f"{len(found)} of 3 latents"
    search.clear()
    Select(page.find_element(By.ID, "coder")).select_by_visible_text("stock")
    assert listed() == ["7", "3"]


@needs_browser
@pytest.mark.integration
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_at_the_width_of_a_desktop_or_a_phone(page: Any, width: int):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    plots = page.find_elements(By.CSS_SELECTOR, ".plotly-graph-div .main-svg")
    assert len(plots) >= 4


def test_each_site_has_its_own_plots_and_others_follow(tmp_path: Path):
    path, more = tmp_path / "report.html", {"Training": go.Figure(go.Scatter(y=[3.0, 1.0]))}
    coders = [
        replace(coder, candidate=replace(coder.candidate, site=Site(hook, hook)))
        for coder, hook in zip(compared(), ("first", "second", "second"), strict=True)
    ]
    write_comparison_report(coders, [[], [], []], {}, path, more)
    text = path.read_text()
    titles = re.findall("<h2>(.*)</h2>", text)
    assert titles[2:8:5] == ["Firing rates, first", "Firing rates, second"]
    assert titles[12:] == ["Training", "Settings"]
    assert text.count("plotly-graph-div") == 11
    assert text.count("plotly.js v") == 1


def test_the_report_names_no_other_place_to_load_from(report: Path):
    text = report.read_text()
    assert "<script src" not in text
    assert '<link rel="stylesheet"' not in text


def test_scores_of_interpret_are_a_section(tmp_path: Path):
    scores = [LatentScore("binary", 3, 9, 0.5, "rule", accuracy=0.75, f1=0.625)]
    write_interpretation(by_coder_and_judge(scores), {}, tmp_path)
    found = read_interpretability(tmp_path, ["binary"])
    path = tmp_path / "report.html"
    write_comparison_report(compared(), [[], [], []], {}, path, None, found)
    text = path.read_text()
    titles = re.findall("<h2>(.*)</h2>", text)
    assert titles[1] == "Interpretability"
    assert titles[-2:] == ["Interpretability, by firing rate", "Settings"]
    assert re.search(r'<td data-value="0.625">\s*0.62', text)
