"""Each error of a command that reads text names a remedy, and following that remedy works."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from sae_lens import SAE

from sae_binary_ext.cli import main
from sae_binary_ext.measure.documents import read_documents
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    TranscoderTrainingRunner,
)
from sae_binary_ext.settings import TextSource
from tests.integration.compare_helpers import HOOK, save_coders
from tests.integration.saelens_helpers import hooked_transformer
from tests.integration.test_transcoder_runner import run_config

pytestmark = pytest.mark.integration
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 40, "k": 5}
WORDS = [f"w{number} w3 w{number + 1}" for number in range(2, 40)] * 4
SHORT = ("--tokens", "400", "--context_size", "16")


@dataclass(frozen=True)
class Place:
    """The folders that a remedy works with: a model, a text, four coders, and an empty folder."""

    model: Path
    text: Path
    coders: list[str]
    root: Path

    def run(self, command: str, *arguments: str | Path) -> None:
        """Run a command on a small part of the text. If the command fails, raise SystemExit."""
        given = [str(argument) for argument in arguments]
        if "--dataset" not in given:
            given += ["--dataset", str(self.text)]
        output = ["--output", str(self.root / "out")] if command != "refit" else []
        assert main([command, *given, *SHORT, *output]) == 0

    def compare(self, *arguments: str | Path) -> None:
        self.run("compare", *arguments, "--spliced_tokens", "100", "--latents", "1")


@dataclass(frozen=True)
class Remedy:
    """A mistake, the remedy that its error names, and the code that follows the remedy."""

    mistake: Callable[[Place], Any]
    says: str
    follow: Callable[[Place], Any]


def transcoder(place: Place) -> Path:
    coder = BinaryTranscoder(BinaryTranscoderConfig(**SIZES))
    coder.cfg.metadata.hook_name = "blocks.0.mlp.hook_in"
    coder.cfg.metadata.hook_name_out = "blocks.0.hook_mlp_out"
    coder.cfg.metadata.model_name = str(place.model)
    coder.save_model(place.root / "transcoder")
    return place.root / "transcoder"


def with_settings(place: Place, **settings: Any) -> Path:
    """Save a coder whose files hold these settings for loading its model."""
    coder = SAE.load_from_disk(place.coders[0])
    coder.cfg.metadata.model_from_pretrained_kwargs = settings
    coder.save_model(place.root / "other")
    return place.root / "other"


def without_place(place: Place) -> Path:
    BinarySAE(BinarySAEConfig(**SIZES)).save_model(place.root / "coder")
    return place.root / "coder"


def threshold_coder(place: Place) -> Path:
    metadata = SAE.load_from_disk(place.coders[0]).cfg.metadata
    config = BinarySAEConfig(**SIZES, selection="threshold", metadata=metadata)
    BinarySAE(config).save_model(place.root / "threshold")
    return place.root / "threshold"


def sparsify_elsewhere(place: Place) -> Path:
    """Save a coder of sparsify in a folder whose name is not a hookpoint."""
    folder = place.root / "mine"
    if not folder.exists():
        shutil.copytree(place.root / "run" / "binary" / "layers.0", folder)
    return folder


def splits(place: Place) -> str:
    both = {"early": Dataset.from_dict({"text": WORDS}), "late": Dataset.from_dict({"text": WORDS})}
    DatasetDict(both).save_to_disk(place.root / "splits")
    return str(place.root / "splits")


def one_split(place: Place) -> str:
    Dataset.from_dict({"text": WORDS}).save_to_disk(place.root / "one")
    return str(place.root / "one")


def columns(place: Place) -> str:
    table = Dataset.from_dict({"title": WORDS, "body": WORDS})
    table.to_parquet(place.root / "columns" / "train.parquet")
    return str(place.root / "columns")


def kinds(place: Place) -> Path:
    folder = place.root / "kinds"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("\n".join(WORDS))
    Dataset.from_dict({"text": WORDS}).to_parquet(folder / "b.parquet")
    return folder


def read(dataset: str | Path, split: str | None = None, column: str | None = None) -> None:
    assert next(read_documents(TextSource(str(dataset), split, column)))


def short_text(place: Place) -> Path:
    (place.root / "short.txt").write_text(" ".join(WORDS))
    return place.root / "short.txt"


def switched(place: Place, on: bool) -> None:
    """Train on hook_mlp_in, which HookedTransformer calls only if set_use_hook_mlp_in is on."""
    model = hooked_transformer(Path())
    model.set_use_hook_mlp_in(on)
    saes = {"it": BinaryTranscoderTrainingSAEConfig(d_in=16, d_sae=32, k=4)}
    config = run_config(
        saes, ("blocks.0.hook_mlp_in", "blocks.0.hook_mlp_out"),
        model_name="tiny", dataset_path=str(place.text),
    )  # fmt: skip
    tokens = Dataset.from_dict({"tokens": [[*range(16)]] * 400})
    TranscoderTrainingRunner(config, override_dataset=tokens, override_model=model)


def interpret(place: Place, source: str) -> Path:
    """Interpret a coder's latents with the judge "tokens"; return the folder, for `compare`."""
    folder = place.root / "told"
    arguments = ["--dataset", str(place.text), "--judge", "tokens", "--window", "4"]
    assert main(["interpret", source, *arguments, *SHORT, "--latents", "2",
                 "--output", str(folder)]) == 0  # fmt: skip
    return folder


def older(place: Place) -> None:
    """Compare with an interpretation whose file has another schema version."""
    path = interpret(place, place.coders[0]) / "interpretation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    place.compare(place.coders[0], "--interpretation", path.parent)


def refit_beside_figures(place: Place, name: str) -> None:
    (place.root / "new").mkdir()
    (place.root / "new" / "metrics.json").write_text("{}")
    place.run("refit", place.coders[0], place.root / name)


REMEDIES = {
    "no hook": Remedy(
        lambda place: place.compare(without_place(place), "--model", place.model),
        "Name it with --hook",
        lambda place: place.compare(
            without_place(place), "--model", place.model, "--hook", HOOK
        ),
    ),
    "a folder that is no hookpoint": Remedy(
        lambda place: place.compare(sparsify_elsewhere(place), "--model", place.model),
        "--hook layers.9 to compare it",
        lambda place: place.compare(
            sparsify_elsewhere(place), "--model", place.model, "--hook", "layers.0"
        ),
    ),
    "the same in a refit": Remedy(
        lambda place: place.run(
            "refit", sparsify_elsewhere(place), place.root / "new", "--model", place.model
        ),
        "hookpoint='layers.9'",
        lambda place: place.run(
            "refit", sparsify_elsewhere(place), place.root / "new",
            "--model", place.model, "--hookpoint", "layers.0",
        ),
    ),
    "another hook": Remedy(
        lambda place: place.compare(place.coders[0], "--hook", "blocks.1.hook_resid_post"),
        "Leave --hook out", lambda place: place.compare(place.coders[0]),
    ),
    "no model": Remedy(
        lambda place: place.compare(sparsify_elsewhere(place), "--hook", HOOK),
        "name it with --model",
        lambda place: place.compare(
            sparsify_elsewhere(place), "--hook", HOOK, "--model", place.model
        ),
    ),
    "named twice": Remedy(
        lambda place: place.compare(place.coders[0], place.coders[0]), "Name it once",
        lambda place: place.compare(place.coders[0]),
    ),
    "two kinds": Remedy(
        lambda place: place.compare(place.coders[0], transcoder(place)), "one kind at a time",
        lambda place: [place.compare(each) for each in (place.coders[0], transcoder(place))],
    ),
    "two models": Remedy(
        lambda place: place.compare(place.coders[0], with_settings(place, fold_ln=True)),
        "one after the other",
        lambda place: [
            place.compare(each) for each in (place.coders[0], with_settings(place, fold_ln=True))
        ],
    ),
    "a setting of the model that is not known": Remedy(
        lambda place: place.compare(with_settings(place, attention_dir="causal")),
        "delete it from the coder's cfg.json",
        lambda place: place.compare(with_settings(place)),
    ),
    "no such hook": Remedy(
        lambda place: place.compare(
            sparsify_elsewhere(place), "--model", place.model, "--hook", "blocks.0.hook_nowhere"
        ),
        "It has ['blocks.0.",
        lambda place: place.compare(
            sparsify_elsewhere(place), "--model", place.model, "--hook", "blocks.0.hook_mlp_out"
        ),
    ),
    "no interpretation": Remedy(
        lambda place: place.compare(place.coders[0], "--interpretation", place.root / "told"),
        "Run sae-binary interpret first",
        lambda place: place.compare(
            place.coders[0], "--interpretation", interpret(place, place.coders[0])
        ),
    ),
    "an interpretation of another version": Remedy(
        older, "Run sae-binary interpret again",
        lambda place: place.compare(
            place.coders[0], "--interpretation", interpret(place, place.coders[0])
        ),
    ),
    "an interpretation of other coders": Remedy(
        lambda place: place.compare(
            place.coders[0], "--interpretation", interpret(place, place.coders[1])
        ),
        "Leave it out, or run sae-binary interpret on these coders",
        lambda place: [
            place.compare(place.coders[0]),
            place.compare(place.coders[0], "--interpretation", interpret(place, place.coders[0])),
        ],
    ),
    "a refit beside another's figures": Remedy(
        lambda place: refit_beside_figures(place, "new"), "Choose a new folder",
        lambda place: place.run("refit", place.coders[0], place.root / "newer"),
    ),
    "levels of values": Remedy(
        lambda place: place.run("multi-bit", place.coders[1]), "Give binary coders",
        lambda place: place.run("multi-bit", threshold_coder(place), "--levels", "2"),
    ),
    "levels where latents compete": Remedy(
        lambda place: place.run("multi-bit", place.coders[0]),
        "Give coders of selection 'threshold'",
        lambda place: place.run("multi-bit", threshold_coder(place), "--levels", "2"),
    ),
    "values that are flipped": Remedy(
        lambda place: place.run("ablate", place.coders[1], "--change", "flip"), "change='zero'",
        lambda place: place.run(
            "ablate", place.coders[1], "--change", "zero", "--spliced_tokens", "100",
            "--groups", "2", "--latents", "1",
        ),
    ),
    "codes of values in a file": Remedy(
        lambda place: place.run("compress", place.coders[1]), "Give binary coders",
        lambda place: place.run("compress", place.coders[0]),
    ),
    "no such layer": Remedy(
        lambda place: place.run("transfer", place.coders[0], "--layers", "7"), "It has [0, 1]",
        lambda place: place.run("transfer", place.coders[0], "--layers", "1"),
    ),
    "a text of one document": Remedy(
        lambda place: place.run("transfer", place.coders[0], "--dataset", short_text(place)),
        "a text of several documents",
        lambda place: place.run("transfer", place.coders[0], "--dataset", place.text),
    ),
    "a refit of a coder without a place": Remedy(
        lambda place: place.run("refit", without_place(place), place.root / "new"),
        "Name its model, and its hook as sparsify names it (layers.9)",
        lambda place: place.run(
            "refit", without_place(place), place.root / "new",
            "--model", place.model, "--hookpoint", "layers.0",
        ),
    ),
    "a split that is not there": Remedy(
        lambda place: read(splits(place)), "['early', 'late']. Name one with --split",
        lambda place: place.compare(
            place.coders[0], "--dataset", splits(place), "--split", "late"
        ),
    ),
    "a split of a file": Remedy(
        lambda place: read(kinds(place) / "b.parquet", "test"), "Name one with --split",
        lambda place: read(kinds(place) / "b.parquet", "train"),
    ),
    "a split of none": Remedy(
        lambda place: read(one_split(place), "test"), "Leave split out",
        lambda place: read(one_split(place)),
    ),
    "a column that is not there": Remedy(
        lambda place: read(columns(place), column="text"), "['title', 'body']",
        lambda place: read(columns(place), column="body"),
    ),
    "several columns": Remedy(
        lambda place: read(columns(place)), "Name it with --text_column",
        lambda place: place.compare(
            place.coders[0], "--dataset", columns(place), "--text_column", "body"
        ),
    ),
    "files of two kinds": Remedy(
        lambda place: read(kinds(place)), "give files of one kind",
        lambda place: read(kinds(place) / "a.txt"),
    ),
    "a hook that is switched off": Remedy(
        lambda place: switched(place, False), "model.set_use_hook_mlp_in(True)",
        lambda place: switched(place, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_works(
    name: str,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    coders = save_coders(tmp_path, tiny_model_folder)
    place, remedy = Place(tiny_model_folder, tiny_dataset, coders, tmp_path), REMEDIES[name]
    with pytest.raises((SystemExit, ValueError)) as refusal:
        remedy.mistake(place)
    assert remedy.says in capsys.readouterr().err + str(refusal.value)
    remedy.follow(place)


def test_as_few_tokens_as_a_refit_tells_are_enough(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    coder, new = save_coders(tmp_path, tiny_model_folder)[0], str(tmp_path / "new")
    arguments = ["refit", coder, new, "--dataset", str(tiny_dataset), "--context_size", "16"]
    with pytest.raises(SystemExit):
        main([*arguments, "--tokens", "1000000"])
    told = re.search(r"Give tokens of at most (\d+)", capsys.readouterr().err)
    assert told is not None
    assert main([*arguments, "--tokens", told[1]]) == 0
