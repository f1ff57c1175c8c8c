"""`sae-binary finetune`: trains coders together, saves them, and measures the saved coders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_binary_ext.checkpoints.finetuned import learners_of, save_finetuned
from sae_binary_ext.checkpoints.load import load_candidate
from sae_binary_ext.commands.finetune.config import LOSSES, FinetuneConfig
from sae_binary_ext.commands.finetune.finetune_page import Finetuned, finetune_page
from sae_binary_ext.measure.candidates import load_candidates
from sae_binary_ext.measure.documents import ALL_ARTICLES
from sae_binary_ext.measure.finetuning import Finetuning, JointSplice, RunningJoint
from sae_binary_ext.measure.held_out_rows import joined, read_rows
from sae_binary_ext.measure.reading import OpenedModel, fingerprint, open_in_model
from sae_binary_ext.report.analysis import Analysis, analyse_model

STATE = "progress.pt"


def run_finetune(coders: list[str], config: FinetuneConfig) -> Analysis:
    """Fine-tune coders together, and write them and the results to config.output.

    Args:
        coders: folders of one coder or of several coders, or Hub ids of either. Autoencoders and
            transcoders of one model may be mixed; each has a hook of its own.
        config: the command's settings.

    Raises:
        CheckpointError: a coder cannot be read, or its format cannot be written.
        ValueError: two coders have one hook, no gradient reaches a coder, the text is too short, or
            config.output has the state of another run.
    """
    loaded = load_candidates(coders, config.hook, config.device)
    candidates = [replace(each, coder=_to_train(each.coder)) for each in loaded]
    opened = open_in_model(candidates, config, config.output, ALL_ARTICLES)
    return analyse_model(config, _finetune, finetune_page, opened)


def _finetune(opened: OpenedModel, config: FinetuneConfig) -> Finetuned:
    splice = JointSplice(opened)
    rows = read_rows(opened, config.tokens, config.held_out_tokens, config.seed)
    sources = opened.model_name, *config.text_source().names(ALL_ARTICLES)
    run = fingerprint(opened.candidates, config, sources)
    # The sums hold the coders' figures as loaded, so make them before training changes the coders.
    before = RunningJoint(opened)
    learners = {each.name: learners_of(each.folder) for each in opened.candidates}
    training = Finetuning(
        splice, LOSSES[config.loss], config.lr, config.parameters, learners,
        config.output / STATE, run,
    )  # fmt: skip
    if training.before is None:
        before.measured(splice, rows.held_out, "Before")
        training.before = before.state_dict()
    else:
        before.load_state_dict(training.before)
        # The first batch that is read sets the limits of outlying norms.
        splice.losses(next(joined(rows.held_out, 8)))
    training.run(list(joined(rows.training, config.batch_rows)))
    saved = _save(opened, config, training.steps[-1].tokens)
    reloaded = _reloaded(opened, saved, config)
    opened.outliers.left_out = 0
    after = RunningJoint(reloaded).measured(JointSplice(reloaded), rows.held_out, "After")
    return Finetuned(before, after, training.steps, saved)


def _save(opened: OpenedModel, config: FinetuneConfig, tokens: int) -> list[Path]:
    """Save each coder in its own format; returns their folders."""
    sites = [str(each.site) for each in opened.candidates]
    folders: list[Path] = []
    for number, candidate in enumerate(opened.candidates):
        note: dict[str, Any] = {
            "loss": config.loss,
            "tokens": tokens,
            "lr": config.lr,
            "spliced_with": sites[:number] + sites[number + 1 :],
        }
        folder = config.output / "coders" / candidate.name
        save_finetuned(candidate.coder, candidate.folder, folder, note)
        folders.append(folder)
    return folders


def _reloaded(opened: OpenedModel, folders: list[Path], config: FinetuneConfig) -> OpenedModel:
    """The model with the saved coders, because these are what a user gets."""
    coders = (load_candidate(folder, config.hook, config.device) for folder in folders)
    pairs = zip(opened.candidates, coders, strict=True)
    candidates = [replace(each, coder=_to_train(coder)) for each, coder in pairs]
    return replace(opened, candidates=candidates)


def _to_train(coder: Any) -> Any:
    """The coder in float32 or wider, because narrower weights would round small steps away."""
    coder.turn_off_forward_pass_hook_z_reshaping()
    return coder.to(torch.promote_types(coder.dtype, torch.float32))
