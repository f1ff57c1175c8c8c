"""Each error about a coder's model or hooks names a remedy, and following that remedy works."""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from sae_lens import SAE, LanguageModelSAETrainingRunner, LoggingConfig, TrainingSAE
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.commands.compress.compress_run import decompress
from sae_binary_ext.measure import hookpoint_encoders, load_candidates, measure
from sae_binary_ext.measure.in_model import load_hooked_model
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    TranscoderTrainingRunner,
)
from tests.integration.compare_helpers import HOOK, save_coders
from tests.integration.saelens_helpers import runner_config
from tests.integration.test_compare_models import save_exact
from tests.integration.test_remedies import SIZES, Place, Remedy, transcoder
from tests.integration.test_transcoder_runner import MODULES, run_config

pytestmark = pytest.mark.integration
HOOKED, BRIDGE, PLAIN = "HookedTransformer", "TransformerBridge", "AutoModelForCausalLM"
FOLDED = {"fold_ln": True}
PROFILE = ("--layers", "1", "--latents", "8", "--training_states", "256", "--along", "positions")
PROMPTS = (*PROFILE, "--prompts", "in_context")
STRANGERS = ["".join(letters) for letters in product("fg", "aeo", "nt", "ou")]
NAMES = ["".join(letters) for letters in product("bcd", "aeo", "nt", "ai")][:28]


def gpt2_coder(place: Place, name: str, model: Any = "gpt2", **settings: Any) -> str:
    """Save a coder of the tiny GPT-2. The settings are those of its model and its hook."""
    place_of = {key: settings.pop(key) for key in ("hook_name",) if key in settings}
    class_name = settings.pop("model_class_name", BRIDGE)
    return save_exact(
        place.root / name, settings, model_name=str(model), model_class_name=class_name, **place_of
    )


def after_the_last_norm(place: Place, name: str = "last") -> str:
    return gpt2_coder(place, name, model_class_name=HOOKED, hook_name="ln_final.hook_normalized")


def of_llama(place: Place, width: int = 16, **metadata: Any) -> Path:
    """Save a coder of the tiny Llama."""
    coder = BinarySAE(BinarySAEConfig(d_in=width, d_sae=40, k=5))
    metadata = {"model_name": str(place.model), "hook_name": HOOK, **metadata}
    for key, value in metadata.items():
        coder.cfg.metadata[key] = value
    coder.save_model(place.root / "other")
    return place.root / "other"


def head(place: Place, number: int, hook_name: str = "blocks.0.attn.hook_z") -> Path:
    """Save a coder of one attention head."""
    return of_llama(place, 8, hook_name=hook_name, hook_head_index=number)


def of_config(place: Place, **fields: Any) -> Path:
    coder = SAE.load_from_disk(place.coders[0])
    changed = BinarySAE(BinarySAEConfig(**SIZES, **fields, metadata=coder.cfg.metadata))
    changed.save_model(place.root / "changed")
    return place.root / "changed"


def skipping(place: Place) -> Path:
    coder = BinaryTranscoder(BinaryTranscoderConfig(**SIZES, skip_connection=True))
    coder.cfg.metadata = SAE.load_from_disk(transcoder(place)).cfg.metadata
    coder.save_model(place.root / "skipping")
    return place.root / "skipping"


def two_layers(place: Place) -> Path:
    coder = BinaryTranscoder(BinaryTranscoderConfig(**SIZES))
    coder.cfg.metadata = SAE.load_from_disk(transcoder(place)).cfg.metadata
    coder.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    coder.save_model(place.root / "across")
    return place.root / "across"


def transfer(place: Place, source: str | Path) -> None:
    place.run("transfer", source, "--layers", "1")


def decompressed(place: Place, source: str) -> None:
    place.run("compress", place.coders[0])
    (path,) = (place.root / "out").glob("*.codes")
    assert len(list(decompress(path, load_coder(source))))


def temporal() -> TemporalSAE:
    return TemporalSAE(TemporalSAEConfig(d_in=16, d_sae=40, n_heads=2, bottleneck_factor=4))


def saved_temporal(place: Place) -> Path:
    coder = temporal()
    coder.cfg.metadata.hook_name = HOOK
    coder.cfg.metadata.model_name = str(place.model)
    coder.save_model(place.root / "temporal")
    return place.root / "temporal"


def probe(place: Place, *sources: str | Path) -> None:
    place.run("probe", *sources, "--names", "156_athlete_sport_baseball", "--test_examples", "9")


def encoders(place: Place, *sources: str | Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(place.model)
    hookpoint_encoders(load_candidates(map(str, sources)), model)


def interpret(place: Place, source: Path) -> None:
    place.run("interpret", source, "--judge", "tokens", "--window", "4", "--latents", "2")


def little_text(place: Place, text: str) -> Path:
    path = place.root / "little.txt"
    path.write_text(text)
    return path


def profile(place: Place, text: Path, *arguments: str | Path) -> None:
    place.run("entropy-profile", "--dataset", text, *arguments)


def model_of_words(place: Place) -> Path:
    """Save the tiny Llama with a tokenizer that knows the names in the prompts."""
    folder = place.root / "words"
    shutil.copytree(place.model, folder)
    known = ["<s>", "</s>", "->", *NAMES, *map(str.upper, NAMES)]
    vocabulary = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


def transcoders(
    place: Place, hooks: tuple[str, str] = MODULES, goes_on_with: str | None = None, **settings: Any
) -> None:
    """Train a transcoder for ten steps, with logging."""
    logger = LoggingConfig(wandb_log_frequency=2, **settings.pop("logging", {}))
    config = run_config(
        {"it": BinaryTranscoderTrainingSAEConfig(**settings.pop("sizes", SIZES))}, hooks,
        model_name=str(place.model), dataset_path=str(place.text), training_tokens=10 * 64,
        logger=logger, **settings,
    )  # fmt: skip
    given: Any = goes_on_with and {goes_on_with: TrainingSAE.from_dict(config.saes["it"].to_dict())}
    TranscoderTrainingRunner(config, override_saes=given).run()


def autoencoder(place: Place) -> None:
    config = BinaryTrainingSAEConfig(**SIZES)
    LanguageModelSAETrainingRunner(
        runner_config(config, place.model, place.text, place.root / "out", 5)
    ).run()


def gradients(place: Place, tokens: str) -> None:
    arguments = [
        "gradients", "--model", str(place.model), "--dataset", str(place.text), "--tokens", tokens,
        "--hook", HOOK, "--context_size", "16", "--latents", "40", "--k", "5", "--probes", "1",
        "--training_states", "256", "--probe_tokens", "100", "--probed_latents", "2",
        "--surrogates", "sigmoid", "--output", str(place.root / "out"),
    ]  # fmt: skip
    assert main(arguments) == 0


REMEDIES = {
    "a setting that a bridge lacks": Remedy(
        lambda place: place.compare(gpt2_coder(place, "a", first_n_layers=1)),
        "'HookedTransformer', and give the model by a name that it knows",
        lambda place: place.compare(
            gpt2_coder(place, "a", first_n_layers=1, model_class_name=HOOKED), "--model", "gpt2"
        ),
    ),
    "the same of a folder": Remedy(
        lambda place: place.compare(
            gpt2_coder(place, "a", place.model, first_n_layers=1, model_class_name=HOOKED)
        ),
        "give the model by a name that it knows",
        lambda place: place.compare(
            gpt2_coder(place, "a", place.model, first_n_layers=1, model_class_name=HOOKED),
            "--model", "gpt2",
        ),
    ),
    "processing of a plain model": Remedy(
        lambda place: place.compare(gpt2_coder(place, "a", model_class_name=PLAIN, **FOLDED)),
        "in each coder's cfg.json to 'HookedTransformer' or 'TransformerBridge'",
        lambda place: [
            place.compare(gpt2_coder(place, name, model_class_name=name, **FOLDED))
            for name in (HOOKED, BRIDGE)
        ],
    ),
    "a folder for HookedTransformer": Remedy(
        lambda place: load_hooked_model(HOOKED, str(place.model), "cpu"),
        "Give the model's name on the Hub. Or set metadata.model_class_name",
        lambda place: [
            load_hooked_model(HOOKED, "gpt2", "cpu"),
            load_hooked_model(BRIDGE, str(place.model), "cpu"),
            load_hooked_model(PLAIN, str(place.model), "cpu"),
        ],
    ),
    "a hook that a bridge has elsewhere": Remedy(
        lambda place: place.compare(after_the_last_norm(place), gpt2_coder(place, "other")),
        "Measure coders of HookedTransformer alone, and name the model as TransformerLens does",
        lambda place: place.compare(after_the_last_norm(place), "--model", "gpt2"),
    ),
    # Mamba's package is not installed here, so the second coder alone is not measured.
    "models of several classes": Remedy(
        lambda place: place.compare(
            gpt2_coder(place, "one"), gpt2_coder(place, "two", model_class_name="HookedMamba")
        ),
        "Measure them one after the other",
        lambda place: place.compare(gpt2_coder(place, "one")),
    ),
    "delphi and a processed model": Remedy(
        lambda place: encoders(
            place, of_llama(place, model_from_pretrained_kwargs={"center_writing_weights": True})
        ),
        "Use sae-binary interpret",
        lambda place: interpret(
            place, of_llama(place, model_from_pretrained_kwargs={"center_writing_weights": True})
        ),
    ),
    "delphi and two coders of a module": Remedy(
        lambda place: encoders(place, *place.coders[:2]), "Cache them one after the other",
        lambda place: [encoders(place, each) for each in place.coders[:2]],
    ),
    "a head of a hook without heads": Remedy(
        lambda place: place.compare(of_llama(
            place, hook_name="model.layers.0", model_class_name=PLAIN, hook_head_index=0
        )),
        "Give a hook with heads, for example blocks.0.attn.hook_z",
        lambda place: place.compare(head(place, 0)),
    ),
    "a head of a bridge's stream": Remedy(
        lambda place: place.compare(head(place, 0, "blocks.0.hook_resid_post")),
        "Give a hook with heads", lambda place: place.compare(head(place, 0)),
    ),
    "no such head": Remedy(
        lambda place: place.compare(head(place, 2)), "Give a head from 0 to 1",
        lambda place: [place.compare(head(place, number)) for number in (0, 1)],
    ),
    "a transfer from no layer": Remedy(
        lambda place: transfer(place, of_llama(place, hook_name="hook_embed")),
        "Give a coder of a layer", lambda place: transfer(place, place.coders[0]),
    ),
    "a transfer of a coder of two layers": Remedy(
        lambda place: transfer(place, two_layers(place)), "Give a coder of one layer",
        lambda place: transfer(place, transcoder(place)),
    ),
    "single tokens for a coder of sequences": Remedy(
        lambda place: measure(temporal(), torch.randn(20, 16)),
        "Measure it with sae-binary compare", lambda place: place.compare(saved_temporal(place)),
    ),
    "a coder of sequences that probes cannot read": Remedy(
        lambda place: probe(place, place.coders[0], saved_temporal(place)),
        "Leave it out", lambda place: probe(place, place.coders[0]),
    ),
    "codes of layer norm in a file": Remedy(
        lambda place: place.run("compress", of_config(place, normalize_activations="layer_norm")),
        "Give a coder without", lambda place: place.run("compress", of_config(place)),
    ),
    "codes of a skip transcoder in a file": Remedy(
        lambda place: place.run("compress", skipping(place)), "Give a transcoder without",
        lambda place: place.run("compress", transcoder(place)),
    ),
    "codes of another coder": Remedy(
        lambda place: decompressed(place, str(of_config(place))),
        "Give the coder that wrote the file: binary",
        lambda place: decompressed(place, place.coders[0]),
    ),
    "few rows that reach a position": Remedy(
        lambda place: profile(
            place, little_text(place, " ".join(["w3"] * 40)), "--model", place.model, *PROFILE
        ),
        "Give a longer text",
        lambda place: profile(place, place.text, "--model", place.model, *PROFILE),
    ),
    "few words for prompts": Remedy(
        lambda place: profile(
            place, little_text(place, " ".join(NAMES[:15])), "--model", place.model, *PROMPTS
        ),
        "and a prompt takes 16. Give a longer text",
        lambda place: profile(
            place, little_text(place, " ".join(NAMES)), "--model", model_of_words(place), *PROMPTS
        ),
    ),
    "prompts longer than the model's positions": Remedy(
        lambda place: profile(
            place, little_text(place, " ".join(NAMES)), "--model", "gpt2", *PROMPTS
        ),
        "Give a model with more positions",
        lambda place: profile(
            place, little_text(place, " ".join(NAMES)), "--model", model_of_words(place), *PROMPTS
        ),
    ),
    "words that the model does not tell apart": Remedy(
        lambda place: profile(
            place, little_text(place, " ".join(STRANGERS)), "--model", model_of_words(place),
            *PROMPTS,
        ),
        "or give another text",
        lambda place: profile(
            place, little_text(place, " ".join(NAMES)), "--model", place.root / "words", *PROMPTS
        ),
    ),
    "few states to train on": Remedy(
        lambda place: gradients(place, "200"), "Give a longer text",
        lambda place: gradients(place, "800"),
    ),
    "cross-entropies of no batch": Remedy(
        lambda place: transcoders(place, n_eval_batches=0, logging={"eval_every_n_wandb_logs": 1}),
        "at least 1 batch. To train without them, set eval_every_n_wandb_logs",
        lambda place: [
            transcoders(place, n_eval_batches=1, logging={"eval_every_n_wandb_logs": 1}),
            transcoders(place, n_eval_batches=0, logging={"eval_every_n_wandb_logs": 100}),
        ],
    ),
    "transcoders to go on with under other names": Remedy(
        lambda place: transcoders(place, goes_on_with="other"), "they must be the same",
        lambda place: transcoders(place, goes_on_with="it"),
    ),
    "a transcoder of one hook": Remedy(
        lambda place: transcoders(place, (HOOK, HOOK)),
        "Train it with SAELens' own runners", autoencoder,
    ),
    "a transcoder of another width": Remedy(
        lambda place: transcoders(place, sizes=SIZES | {"d_in": 8, "d_out": 16}), "Give d_in=16",
        transcoders,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_works(
    name: str,
    tiny_model_folder: Path,
    tiny_gpt2_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    # In the parent of the folder "gpt2", both libraries load that folder by the name "gpt2".
    monkeypatch.chdir(tiny_gpt2_folder.parent)
    coders = save_coders(tmp_path, tiny_model_folder)
    place, remedy = Place(tiny_model_folder, tiny_dataset, coders, tmp_path), REMEDIES[name]
    with pytest.raises((SystemExit, ValueError)) as refusal:
        remedy.mistake(place)
    assert remedy.says in capsys.readouterr().err + str(refusal.value)
    remedy.follow(place)
