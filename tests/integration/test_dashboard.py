"""SAEDashboard, which needs older packages than we do, reads the stock form of a binary coder.

Its environment, .venv-dashboard, lacks this package.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from gzip import decompress
from pathlib import Path
from typing import Any

import pytest
import torch
from plotly.offline import get_plotlyjs
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.checkpoints import convert
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-dashboard"
PYTHON, NEURONPEDIA = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "neuronpedia"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
LATENTS, PROMPTS, LAYER = 24, 16, 2
FIRING_RATE = 0.02

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs the environment of make test-dashboard"),
]


def run(*command: object, cwd: Path, **variables: str) -> None:
    """Run a command in the dashboard's environment, without ours."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables
    told = list(map(str, (PYTHON, *command)))
    done = subprocess.run(told, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@dataclass(frozen=True)
class Dashboard:
    """What the example wrote, and what it should say of the tokens [prompts, context] it read."""

    folder: Path
    coder: BinarySAE
    tokens: Tensor
    # Codes [prompts, context, latents], where a special token has none.
    codes: Tensor
    decode: Callable[[Tensor], str]

    @property
    def batches(self) -> Path:
        (found,) = self.folder.glob("smollm2-135m-instruct_*")
        return found

    def features(self) -> list[dict[str, Any]]:
        """The latents of the batches for Neuronpedia."""
        read = [json.loads(path.read_text()) for path in sorted(self.batches.glob("batch-*.json"))]
        return [feature for batch in read for feature in batch["features"]]


@pytest.fixture(scope="module")
def dashboard(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dashboard:
    folder = tmp_path_factory.mktemp("dashboard")
    texts = [text[:1200] for _, text in read_wikipedia_sample()][: 3 * PROMPTS]
    rows = "\n".join(json.dumps({"text": text}) for text in texts)
    (folder / "text").mkdir()
    (folder / "text" / "articles.jsonl").write_text(rows)
    model = AutoModel.from_pretrained(smollm2_folder)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model.layers = model.layers[:LAYER]
    model.norm = torch.nn.Identity()

    @torch.no_grad()
    def activations(tokens: Tensor) -> Tensor:
        return model(tokens).last_hidden_state

    torch.manual_seed(0)
    config = BinarySAEConfig(d_in=576, d_sae=LATENTS, selection="threshold")
    config.metadata.model_name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.metadata.hook_name = f"blocks.{LAYER}.hook_resid_pre"
    config.metadata.prepend_bos = True
    coder = BinarySAE(config)
    some = tokenizer(texts[0], return_tensors="pt")["input_ids"][:, :128]
    with torch.no_grad():
        products = activations(some)[0, 1:] @ coder.W_enc
        threshold = coder.log_threshold.exp()
        coder.b_enc.copy_(threshold - products.quantile(1 - FIRING_RATE, dim=0))
    coder.save_model(folder / "coder")
    convert(str(folder / "coder"), folder / "stock", host="stock")

    script = ROOT / "examples" / "make_dashboard.py"
    run(script, "stock", smollm2_folder, "text", "out", PROMPTS, 3, 5, cwd=folder)
    (saved,) = folder.glob("out/*/tokens_*.pt")
    tokens = torch.load(saved)
    special = torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id])
    codes = coder.encode(activations(tokens)) * ~torch.isin(tokens, special)[..., None]
    return Dashboard(folder / "out", coder, tokens, codes.detach(), tokenizer.decode)


def test_the_batches_have_each_latent_s_firings(dashboard: Dashboard):
    features = dashboard.features()
    assert [feature["feature_index"] for feature in features] == list(range(LATENTS))
    rates = torch.tensor([feature["frac_nonzero"] for feature in features])
    # Densities are rounded to five places. Rounding in another version of torch may flip a code.
    torch.testing.assert_close(rates, dashboard.codes.mean((0, 1)), atol=1e-3, rtol=0)
    assert (rates > 0).sum() > LATENTS / 2
    norms = dashboard.coder.W_dec.norm(dim=1).tolist()
    for latent, feature in enumerate(features):
        rows = {tuple(row) for row in dashboard.codes[:, 1:, latent].int().tolist()}
        for shown in feature["activations"]:
            # SAEDashboard folds norms of decoder rows into activations.
            values = shown["values"]
            assert all(value in (0.0, pytest.approx(norms[latent], abs=2e-3)) for value in values)
            assert 0.0 in values
            assert tuple(int(value > 0) for value in values) in rows


def letters(text: str) -> str:
    """The letters and digits of ASCII. The page shows bytes of others, and line ends as \\n."""
    return re.sub(r"[^a-zA-Z0-9]", "", text.replace("\\n", ""))


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver here")
def test_the_page_shows_a_latent_s_text(dashboard: Dashboard, tmp_path: Path):
    (d3,) = ENVIRONMENT.glob("lib/*/site-packages/mpld3/js/d3.v5.min.js")
    (tmp_path / "plotly.js").write_text(get_plotlyjs())
    html = (dashboard.folder / "page.html").read_text()
    for address, copy in (
        ("https://d3js.org/d3.v6.min.js", d3),
        ("https://cdn.plot.ly/plotly-latest.min.js", tmp_path / "plotly.js"),
    ):
        assert address in html
        html = html.replace(address, copy.as_uri())
    (tmp_path / "page.html").write_text(html)
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    text = letters("".join(map(dashboard.decode, dashboard.tokens)))
    with Chrome(options=options, service=Service(str(DRIVER))) as page:
        page.get((tmp_path / "page.html").as_uri())
        for latent in (3, 5):
            Select(page.find_element(By.ID, "select-0")).select_by_value(str(latent))
            fired = {
                dashboard.decode(token).strip()
                for token in dashboard.tokens[dashboard.codes[..., latent] > 0]
            }
            # All firings tie, so these are any five of them. One can be of marks without a letter.
            shown = [
                row.find_elements(By.CLASS_NAME, "token")
                for row in page.find_elements(By.CSS_SELECTOR, ".seq")[:5]
            ]
            words = [letters("".join(token.text for token in row)) for row in shown]
            assert sum(map(len, words)) > 8
            assert all(each in text for each in words)
            for row in shown:
                (bold,) = [
                    token for token in row if token.value_of_css_property("font-weight") == "700"
                ]
                assert bold.text.strip() in fired
            body = page.find_element(By.TAG_NAME, "body").text
            (density,) = re.findall(r"DENSITY = ([\d.]+)%", body)
            rate = 100 * float(dashboard.codes[..., latent].mean())
            assert float(density) == pytest.approx(rate, abs=0.1)


# Python types of a column's values in JSON. jsonb_to_recordset, by which Neuronpedia imports,
# casts numbers to String.
TYPES = {
    "String": (str, int), "Int": (int,), "Float": (int, float), "Boolean": (bool,),
    "DateTime": (str,), "Visibility": (str,),
}  # fmt: skip
# A name, a type, [] or ?, and attributes, of which a default matters.
COLUMN = re.compile(r"^ +(\w+) +(\w+)(\[\]|\?)?( .*)?$", re.MULTILINE)


def check_table(rows: list[dict[str, Any]], name: str, schema: str) -> None:
    """Check rows of an export against a table of Neuronpedia's Prisma schema."""
    (body,) = re.findall(rf"^model {name} {{\n(.*?)^}}", schema, re.MULTILINE | re.DOTALL)
    columns = [found for found in COLUMN.findall(body) if found[1] in TYPES]
    assert rows
    assert len(columns) > 10
    for row in rows:
        for column, kind, many, attributes in columns:
            value = row.get(column)
            if value is None:
                assert many or "@default" in attributes, f"{name} lacks {column}"
            else:
                values = value if many == "[]" else [value]
                assert all(isinstance(one, TYPES[kind]) for one in values), f"{name}.{column}"


@pytest.mark.skipif(
    not NEURONPEDIA.exists(), reason="no copy of Neuronpedia: it could not be cloned"
)
def test_neuronpedia_s_converter_takes_the_batches(dashboard: Dashboard, tmp_path: Path):
    tools = NEURONPEDIA / "utils" / "neuronpedia-utils"
    options = {
        "saedashboard-output-dir": dashboard.batches, "creator-name": "Me", "release-id": "mine",
        "release-title": "Mine", "url": "https://example.org", "model-name": "smollm2",
        "neuronpedia-source-set-id": "binary-res", "neuronpedia-source-set-description": "Residual",
        "hf-weights-repo-id": "user/repo", "hf-weights-path": "stock/sae_weights.safetensors",
        "hook-point": "hook_resid_pre", "layer-num": LAYER, "n-prompts-total": PROMPTS,
        "prompts-huggingface-dataset-path": "text", "n-tokens-in-prompt": 128,
    }  # fmt: skip
    told = [f"--{name}={value}" for name, value in options.items()] + ["--zero-out-bos-token"]
    script = tools / "neuronpedia_utils" / "convert-saedashboard-to-neuronpedia-export.py"
    run(script, *told, cwd=tmp_path, PYTHONPATH=str(tools), DEFAULT_CREATOR_ID="me")
    export = tmp_path / "exports" / "smollm2" / f"{LAYER}-binary-res"
    schema = (NEURONPEDIA / "apps" / "webapp" / "prisma" / "schema.prisma").read_text()

    def read(pattern: str) -> list[dict[str, Any]]:
        """The rows of the files that match."""
        files = [path.read_bytes() for path in sorted(export.glob(pattern))]
        texts = [decompress(file) if pattern.endswith("gz") else file for file in files]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    tables = {
        "Model": "model.jsonl", "SourceRelease": "release.jsonl", "SourceSet": "sourceset.jsonl",
        "Source": "source.jsonl", "Neuron": "features/*.gz", "Activation": "activations/*.gz",
    }  # fmt: skip
    for name, pattern in tables.items():
        check_table(read(pattern), name, schema)
    assert [row["index"] for row in read("features/*.gz")] == list(range(LATENTS))
    for row in read("activations/*.gz"):
        assert len(row["tokens"]) == len(row["values"])
