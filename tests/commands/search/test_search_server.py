"""The page of `sae-binary search --serve`, over HTTP and in a browser."""

import json
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from sae_binary_ext.commands import CodeIndex
from sae_binary_ext.commands.index import index_folder as files
from sae_binary_ext.commands.search.search_server import server_of
from tests.indexes import VOCABULARY, write_index

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MARKUP = "<b onclick=alert(1)>&amp;"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a served index: 40 tokens; latent 0 fires on 3 and 30, latent 1 on 0 to 9."""
    codes = np.zeros((40, 3), np.bool_)
    codes[[3, 30], 0] = codes[:10, 1] = True
    write_index(tmp_path, codes, np.ones(40, np.bool_), np.zeros(40, np.int64), [(0, 0, 40)])
    words = [MARKUP if number == 3 else f" w{number}" for number in range(VOCABULARY)]
    (tmp_path / files.VOCABULARY).write_text(json.dumps(words))
    with server_of(CodeIndex.open(tmp_path), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def asked(address: str, **fields: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{address}/search?{urllib.parse.urlencode(fields)}") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_answers_a_query(address: str):
    status, found = asked(address, query="0", cofiring="1")
    assert (status, found["count"], found["among"]) == (200, 2, 40)
    assert [sum(marked for _, marked in each["tokens"]) for each in found["passages"]] == [1, 1]
    assert found["cofiring"] == []
    status, found = asked(address, query="1", within="window", window="5", show="1")
    assert (found["count"], len(found["passages"])) == (14, 1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "expected a latent"),
        ({"query": "0 &"}, "at character 4"),
        ({"query": "0", "within": "line"}, "within='line'"),
        ({"query": "0", "show": "0"}, "show=0"),
        ({"query": "0", "show": "ten"}, "'ten'"),
    ],
)
def test_a_mistake_is_told(address: str, fields: dict[str, str], told: str):
    status, found = asked(address, **fields)
    assert status == 400
    assert told in found["error"]


def test_other_pages_and_other_hosts_get_nothing(address: str):
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{address}/index.json")
    assert missing.value.code == 404
    request = urllib.request.Request(address, headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403


def test_a_port_in_use_is_named(address: str, tmp_path: Path):
    port = int(address.rpartition(":")[2])
    for wrong in (port, 70_000):
        with pytest.raises(ValueError, match=rf"port={wrong}: .*Give another"):
            server_of(CodeIndex.open(tmp_path), wrong)


@pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no chromium and chromedriver")
@pytest.mark.integration
def test_the_page_shows_passages_in_a_browser(address: str):
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=Service(str(DRIVER))) as browser:
        browser.get(address)
        told = browser.find_element(By.ID, "told")

        def search(query: str, begins: str) -> None:
            field = browser.find_element(By.ID, "query")
            field.clear()
            field.send_keys(query + "\n")
            WebDriverWait(browser, 10).until(lambda _: told.text.startswith(begins))

        search("0 & 1", "0 & 1: 1 of 40 tokens")
        (article,) = browser.find_elements(By.TAG_NAME, "article")
        # Text is shown as text, never as markup.
        assert [each.text for each in article.find_elements(By.TAG_NAME, "mark")] == [MARKUP]
        Select(browser.find_element(By.ID, "within")).select_by_visible_text("document")
        browser.find_element(By.NAME, "cofiring").click()
        search("0", "0: 1 of 1 documents")
        assert "no other" not in told.text
        browser.find_element(By.NAME, "cofiring").click()
        search("0 &", 'expected a latent, a label, "!" or "("')
        assert told.get_attribute("class") == "wrong"
        assert browser.find_elements(By.TAG_NAME, "article") == []
        errors = [each for each in browser.get_log("browser") if "400" not in each["message"]]
        assert errors == []
