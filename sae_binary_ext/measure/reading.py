"""Opens coders with their model, and reads text for all of them with one forward pass a batch.

Counts are saved in a file, so that an interrupted run can continue.
"""

import hashlib
import json
import logging
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.bundled.smollm2 import MODEL_NAME, export_smollm2
from sae_binary_ext.coding.kernels.processor import multiplies_bfloat16
from sae_binary_ext.measure import candidates as coders
from sae_binary_ext.measure import documents as texts
from sae_binary_ext.measure import in_model
from sae_binary_ext.measure.candidates import Candidate, OpenedModel, ReadBatch, Site
from sae_binary_ext.measure.documents import ALL_ARTICLES, HELD_OUT_ARTICLES, TextBatch
from sae_binary_ext.measure.figures import CoderFigures, RunningFigures, RunningVariance, TokenBatch
from sae_binary_ext.measure.saved_activations import read_from_file
from sae_binary_ext.saelens.splice import HookView
from sae_binary_ext.settings import (
    AUTO,
    BFLOAT16,
    FLOAT32,
    ActivationsFields,
    ReadingConfig,
    TextConfig,
    check_first_position,
)

Hooks = Iterable[str]
logger = logging.getLogger(__name__)
# Functions that read text, by the name of the bundled articles they read without a dataset.
_READERS = {HELD_OUT_ARTICLES: texts.read_documents, ALL_ARTICLES: texts.read_all_documents}
HOOKED_TRANSFORMER, PLAIN_MODEL = in_model.HOOKED_TRANSFORMER, "AutoModelForCausalLM"
# Hooks at which an unprocessed HookedTransformer and a TransformerBridge have the same activations.
SAME_HOOKS = re.compile(
    r"hook_embed|blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_(mlp|attn)_out|mlp\.hook_(in|pre|post)"
    r"|attn\.hook_[qkvz])"
)
# Two kinds of hooks agree for some models only. If a norm follows attention or MLP,
# HookedTransformer applies it before the hook, and a bridge after it. Hooks of norms agree for
# LayerNorm only.
WITHOUT_POST_NORM = re.compile(r"blocks\.\d+\.hook_(mlp|attn)_out")
OF_LAYER_NORM = re.compile(r"blocks\.\d+\.ln[12]\.hook_(normalized|scale)")
# Version of the saved counts. Counts of another version are not used.
LAYOUT = 3
# Time between two saves, because each save writes tens of megabytes.
SECONDS_BETWEEN_SAVES = 30.0
UseBatch = Callable[[TextBatch], None]


def open_coders(
    sources: Iterable[str], config: TextConfig, folder: Path, embedded: str = HELD_OUT_ARTICLES
) -> OpenedModel:
    """Load coders, and the model that their files name.

    Args:
        sources: as in candidates.load_candidates.
        config: names the model, the text, and the hook of coders whose files do not name it.
        folder: gets the bundled model's files, in "model"; the folder is made if missing.
        embedded: name of the bundled articles that are read if config.dataset is None.

    CheckpointError if a coder cannot be read. ValueError if the coders need several models, or if
    autoencoders and transcoders are mixed.
    """
    candidates = coders.load_candidates(sources, config.hook, config.device)
    coders.check_alike(candidates)
    return open_in_model(candidates, config, folder, embedded)


def open_in_model(
    candidates: list[Candidate], config: TextConfig, folder: Path, embedded: str = HELD_OUT_ARTICLES
) -> OpenedModel:
    """Load the model of coders that are already loaded; other arguments as for open_coders."""
    coders.check_any(candidates)
    name = coders.common_model(candidates, config.model)
    return _open(candidates, name, config, folder, embedded)


def open_model_alone(config: TextConfig, folder: Path) -> OpenedModel:
    """Load config.model, or SmolLM2, without coders. The default text is all embedded articles."""
    return _open([], config.model or MODEL_NAME, config, folder, ALL_ARTICLES)


def _open(
    candidates: list[Candidate], name: str, config: TextConfig, folder: Path, embedded: str
) -> OpenedModel:
    settings = _common_settings(candidates)
    folder.mkdir(parents=True, exist_ok=True)
    bundled = config.model is None and name == MODEL_NAME
    path = str(export_smollm2(folder / "model")) if bundled else name
    kind = _common_class(candidates, path)
    model: Any = in_model.load_hooked_model(kind, path, config.device, settings)
    if isinstance(model, TransformerBridge):
        _check_same_in_bridge(candidates, model)
    candidates, hooks = coders.at_common_sites(candidates, model)
    text_name, first = config.dataset or embedded, config.first_position
    context_size, positions = config.context_size, in_model.positions_of(model)
    if positions is not None and positions < context_size:
        told = "context_size=%d: the model has %d positions, so rows have that many tokens."
        logger.warning(told, context_size, positions)
        context_size = positions
    check_first_position(first, context_size)
    tokenizer = cast(PreTrainedTokenizerBase, model.tokenizer)
    read = partial(_READERS[embedded], config.text_source())
    outliers = texts.OutlyingTokens(getattr(config, "norm_limit", math.inf))
    return OpenedModel(
        candidates, hooks, model, name, tokenizer, text_name, read, outliers, context_size, first,
        multiplies_in_bfloat16(config),
    )  # fmt: skip


def multiplies_in_bfloat16(config: TextConfig) -> bool:
    """Whether a model that is read with these settings multiplies matrices in bfloat16."""
    precision = config.precision if isinstance(config, ActivationsFields) else FLOAT32
    on_cpu = torch.device(config.device).type == "cpu"
    return precision == BFLOAT16 or (precision == AUTO and on_cpu and multiplies_bfloat16())


def _common_settings(candidates: list[Candidate]) -> dict[str, Any]:
    """The settings of the model, which all coders must share; ValueError if they differ."""
    found = [(each.name, coders.settings_of_model(each)) for each in candidates]
    for name, settings in found[1:]:
        if settings != found[0][1]:
            raise ValueError(
                f"{found[0][0]} and {name} need different models: the files of the first say to "
                f"load it with {coders.told(found[0][1])}, those of the second with "
                f"{coders.told(settings)} (model_from_pretrained_kwargs). Measure them one after "
                "the other."
            )
    return found[0][1] if found else {}


def _common_class(candidates: list[Candidate], path: str) -> str | None:
    """The class of hooked model for all coders; None for a bridge, which replaces most classes."""
    classes = {_class_of(each): each.name for each in candidates}
    if len(classes) != 1:
        if others := set(classes) - {None, HOOKED_TRANSFORMER, PLAIN_MODEL}:
            raise ValueError(
                f"coders: were trained with models of different classes, {classes}, and no other "
                f"class can replace {sorted(map(str, others))}. Measure them one after the other."
            )
        return None
    (only,) = classes
    if only == HOOKED_TRANSFORMER and not in_model.known_to_hooked_transformer(path):
        logger.info("%s: TransformerLens has no model of this name, so a bridge reads it.", path)
        return None
    return only


def _class_of(candidate: Candidate) -> str | None:
    name = candidate.coder.cfg.metadata.model_class_name
    return None if name in in_model.BRIDGES else name


def _check_same_in_bridge(candidates: list[Candidate], bridge: TransformerBridge) -> None:
    """Raise ValueError if a bridge would give a HookedTransformer's coder other activations."""
    names = cast(Mapping[str, Any], bridge.hook_dict)
    has_post_norms = any(re.search(r"\.ln[12]_post\.", name) for name in names)
    layer_norm = str(bridge.cfg.normalization_type).startswith("LN")
    for candidate in candidates:
        if _class_of(candidate) != HOOKED_TRANSFORMER:
            continue
        for hook in (candidate.site.hook_name, candidate.site.hook_name_out):
            name = HookView.of(hook).hook_name
            same = SAME_HOOKS.fullmatch(name) or (layer_norm and OF_LAYER_NORM.fullmatch(name))
            if not same or (has_post_norms and WITHOUT_POST_NORM.fullmatch(name)):
                raise ValueError(
                    f"{candidate.name}: was trained at {hook} of a {HOOKED_TRANSFORMER}, and a "
                    "TransformerBridge may have other activations there. Measure coders of "
                    f"{HOOKED_TRANSFORMER} alone, and name the model as TransformerLens does."
                )


def settings_of(opened: OpenedModel, config: TextConfig) -> dict[str, str]:
    """A command's settings as its files list them, with the model, text and context size in use."""
    found = asdict(config) | {"model": opened.model_name, "dataset": opened.text_name}
    found["context_size"] = opened.context_size
    if isinstance(config, ActivationsFields):
        found["precision"] = opened.precision
    if isinstance(config, ReadingConfig):
        found["tokens_left_out"] = opened.outliers.left_out
    return {key: str(value) for key, value in found.items()}


def read_text(
    opened: OpenedModel, config: TextConfig, description: str = "Reading", more_hooks: Hooks = ()
) -> Iterator[ReadBatch]:
    """Batches with activations, config.tokens tokens in all; ValueError if there is no text.

    Activations come from the file config.activations if there is one, as in read_from_file.
    """
    more_hooks = list(more_hooks)
    opened = read_from_file(opened, config, more_hooks)
    opened.outliers.start()
    with tqdm(total=config.tokens, desc=description, unit="tokens", unit_scale=True) as progress:
        read = 0
        for text, tokens in opened.batches(config.tokens):
            yield opened.read(text, more_hooks)
            read += tokens
            progress.update(tokens)
        if not read:
            raise ValueError("dataset: holds no text to read.")


class RunningCoders(nn.Module):
    """Figures and samples of all opened coders. Its state_dict can be saved."""

    def __init__(self, opened: OpenedModel, samples: int = 0) -> None:
        super().__init__()
        self.opened = opened
        self.variances = {each.site: RunningVariance(each.d_out) for each in opened.candidates}
        self.running = [RunningFigures(each.coder, samples) for each in opened.candidates]
        self.all_variances = nn.ModuleList(self.variances.values())
        self.all_figures = nn.ModuleList(self.running)

    def add(self, batch: ReadBatch) -> Iterator[tuple[Candidate, TokenBatch, Tensor]]:
        """Add a batch; yields each coder, its activations, and its active latents on the CPU."""
        weights = texts.document_weights(batch.text.documents)
        tokens: dict[Site, TokenBatch] = {}
        for site, variance in self.variances.items():
            tokens[site] = batch.tokens(self.opened.hooks[site], weights)
            variance.add(tokens[site])
        for candidate, figures in zip(self.opened.candidates, self.running, strict=True):
            own = tokens[candidate.site]
            yield candidate, own, figures.add(own)

    def figures(self) -> list[CoderFigures]:
        """The figures so far, in the order of the coders."""
        pairs = zip(self.opened.candidates, self.running, strict=True)
        return [figures.figures(self.variances[each.site]) for each, figures in pairs]


def fingerprint(candidates: Iterable[Candidate], settings: Any, sources: Iterable[str]) -> str:
    """A hash of the coders, the settings (a dataclass), and the sources' sizes and times."""
    digest = hashlib.sha256(json.dumps([LAYOUT, asdict(settings)], default=str).encode())
    for source in sources:
        digest.update(f"{source}{texts.sizes_and_times(source)}".encode())
    for candidate in candidates:
        config = json.dumps(candidate.coder.cfg.to_dict(), default=str)
        digest.update(f"{candidate.name} {candidate.site} {config}".encode())
        for name, tensor in candidate.coder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def interrupts_noted() -> Generator[Callable[[], bool]]:
    """Only note the first Ctrl-C, so that no batch is half counted; yields a check for it.

    A second Ctrl-C raises KeyboardInterrupt at once. The previous handler is not called, because it
    may be a leftover of SAELens' training runner.
    """
    handled, came = signal.getsignal(signal.SIGINT), threading.Event()
    # Only the main thread can handle interrupts. If the process ignores Ctrl-C, keep ignoring it.
    if threading.current_thread() is not threading.main_thread() or not callable(handled):
        yield came.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            signal.default_int_handler(number, frame)
        came.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, handled)


class SavedProgress:
    """Saves counts in a file, with the number of batches of each stage that they contain.

    The module `counts` loads the file's counts if the file has the same fingerprint, `of`.
    """

    def __init__(self, opened: OpenedModel, path: Path, of: str, counts: nn.Module) -> None:
        self._opened, self._path, self._of, self._counts = opened, path, of, counts
        self._done: dict[str, int] = {}
        self._saved_at = time.monotonic()
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            if (metadata := file.metadata() or {}).get("of") != of:
                logger.info("%s is of another comparison, and starts anew.", path)
                return
            counts.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        self._done = json.loads(metadata["done"])
        logger.info("Going on after %s batches, from %s", self._done, path)

    def go_on(self, stage: str, description: str, tokens: int, use: UseBatch) -> None:
        """Use batches of a stage (at least `tokens` tokens), except those used in an earlier run.

        Ctrl-C raises KeyboardInterrupt once the batch is saved. ValueError if there is no text.
        """
        done = self._done.setdefault(stage, 0)
        with (
            tqdm(total=tokens, desc=description, unit="tokens", unit_scale=True) as progress,
            interrupts_noted() as interrupted,
        ):
            for number, (batch, size) in enumerate(self._opened.batches(tokens)):
                if number >= done:
                    use(batch)
                    self._done[stage] += 1
                    if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
                        self._save()
                progress.update(size)
                if interrupted():
                    self._save()
                    raise KeyboardInterrupt
        if not self._done[stage]:
            raise ValueError("dataset: holds no text to measure on.")
        self._save()

    def once(self, stage: str, do: Callable[[], None]) -> None:
        """Do a stage that has no parts, unless an earlier run did it."""
        if stage not in self._done:
            do()
            self._done[stage] = 1
            self._save()

    def _save(self) -> None:
        unfinished, done = self._path.with_suffix(".unfinished"), json.dumps(self._done)
        save_file(self._counts.state_dict(), unfinished, metadata={"of": self._of, "done": done})
        unfinished.replace(self._path)
        self._saved_at = time.monotonic()
