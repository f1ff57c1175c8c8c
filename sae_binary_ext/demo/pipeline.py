"""The demo from start to end: activations, training, measuring, report."""

import os
from dataclasses import asdict
from pathlib import Path

from sae_lens import SAE, SAETransformerBridge
from transformers import AutoTokenizer

from sae_binary_ext.demo.activations import Activations, load_or_compute
from sae_binary_ext.demo.coders import CoderPlan, Trained, plan_coders, train_coder
from sae_binary_ext.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.demo.model import MODEL_NAME, export_smollm2
from sae_binary_ext.evaluation.contexts import choose_latents, latent_contexts
from sae_binary_ext.evaluation.in_model import SplicedModel
from sae_binary_ext.evaluation.metrics import measure
from sae_binary_ext.evaluation.report import (
    CoderResult,
    terminal_table,
    write_metrics,
    write_report,
)

LATENTS_SHOWN = 6


def run_demo(config: DemoConfig) -> str:
    """Train and compare the demo's coders; files go to config.output.

    Returns:
        The comparison as a table for the terminal.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    model_folder = export_smollm2(config.output / "model")
    activations = load_or_compute(config, model_folder)
    plans = plan_coders(config, activations.train.shape[-1])
    trained = [train_coder(plan, config, activations.train) for plan in plans]
    results = _evaluate(config, model_folder, activations, plans, trained)

    run = _describe(config, activations)
    write_metrics(results, run, config.output / "metrics.json")
    _write_beside_coders(results, trained, run)
    write_report(results, run, config.output / "report.html")
    return terminal_table(results)


def _evaluate(
    config: DemoConfig,
    model_folder: Path,
    activations: Activations,
    plans: list[CoderPlan],
    trained: list[Trained],
) -> list[CoderResult]:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = SAETransformerBridge.boot_transformers(str(model_folder), device="cpu")
    rows = activations.held_out_rows
    spliced = -(-config.spliced_tokens // (config.context_size - FIRST_POSITION))
    splice = SplicedModel(model, rows[:spliced], config.hook_name, first_position=FIRST_POSITION)
    texts = [
        [tokenizer.decode(token) for token in row] for row in rows[:, FIRST_POSITION:].tolist()
    ]
    results: list[CoderResult] = []
    for plan, training in zip(plans, trained, strict=True):
        # The saved file and not the coder in memory: it is the file a user gets.
        coder = SAE.load_from_disk(training.folder)
        metrics = measure(coder, activations.held_out)
        chosen = choose_latents(metrics.rates, LATENTS_SHOWN, len(activations.held_out))
        results.append(
            CoderResult(
                name=plan.name,
                settings=_settings(plan),
                metrics=metrics,
                losses=splice.losses(coder),
                seconds=training.seconds,
                fvu_by_step=training.fvu_by_step,
                latents=latent_contexts(
                    coder, activations.held_out, texts, chosen, metrics.rates, seed=config.seed
                ),
            )
        )
    return results


def _write_beside_coders(
    results: list[CoderResult], trained: list[Trained], run: dict[str, str]
) -> None:
    """Each coder's own figures in its folder, where `sae-binary push` looks for them."""
    for result, training in zip(results, trained, strict=True):
        write_metrics([result], run, training.folder / "metrics.json")


def _settings(plan: CoderPlan) -> dict[str, str]:
    left_out = ("metadata", "device", "dtype", "d_in")
    fields = {name: value for name, value in asdict(plan.sae).items() if name not in left_out}
    settings = {"architecture": plan.sae.architecture(), "lr": plan.lr} | fields
    return {name: str(value) for name, value in settings.items()}


def _describe(config: DemoConfig, activations: Activations) -> dict[str, str]:
    return {
        "model": MODEL_NAME,
        "hook": config.hook_name,
        "text": "Wikipedia sample of gensim",
        "training tokens": f"{len(activations.train)} seen {config.epochs} times",
        "held-out tokens": str(len(activations.held_out)),
        "tokens spliced": str(config.spliced_tokens),
        "batch": str(config.batch_size),
        "seed": str(config.seed),
        "processors": str(os.cpu_count()),
    }
