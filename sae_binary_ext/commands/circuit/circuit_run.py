"""Attribution graphs of a prompt through the transcoders of all layers."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# (circuit-tracer is not installed where types are checked.)

import json
import re
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sae_binary_ext.checks import check_at_least, check_rate
from sae_binary_ext.settings import chosen_device

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph
    from circuit_tracer.transcoder import TranscoderSet
    from transformers import PretrainedConfig

    from sae_binary_ext.measure.candidates import Candidate

SIZES = ("max_latents", "max_targets", "batch_size")
LONGEST_NAME = 60
# circuit-tracer gives this type to latents of single-layer transcoders too.
LATENT = "cross layer transcoder"


def circuit(options: Namespace) -> Iterator[str]:
    """Write the graph files of options.prompt; yields what they hold and how to open them."""
    if find_spec("circuit_tracer") is None:
        raise ImportError(
            "needs the package circuit-tracer, whose versions of other packages are old: install "
            "it in an environment of its own, pip install 'sae_binary_ext[circuits]'."
        )
    check_at_least(1, **{size: getattr(options, size) for size in SIZES})
    check_rate(node_threshold=options.node_threshold, edge_threshold=options.edge_threshold)
    name = re.sub(r"\W+", "-", options.name or options.prompt.lower()).strip("-")[:LONGEST_NAME]
    if not name:
        raise ValueError(f"prompt={options.prompt!r}: has no words. Name the graph with --name.")
    graph = trace(open_model(options, f"./data/{name}"), options)
    yield from _write(graph, options, name)
    yield f"\nOpen it: circuit-tracer start-server --graph_file_dir {options.output} --port 8041"
    yield f"         http://localhost:8041/index.html?slug={name}"


def open_model(options: Namespace, scan: str) -> Any:
    """circuit-tracer's ReplacementModel of the coders. `scan` tells its page where texts are.

    ValueError if the coders are not one transcoder for each layer of one model, or the backend does
    not know the model or their hooks.
    """
    import torch
    from circuit_tracer import ReplacementModel
    from transformers import AutoConfig

    from sae_binary_ext.circuits import transcoder_set
    from sae_binary_ext.measure.candidates import load_candidates
    from sae_binary_ext.measure.in_model import known_to_hooked_transformer

    device = chosen_device(options.device)
    candidates = load_candidates([options.source], device=device)
    path = _model_of(candidates, options)
    config = AutoConfig.from_pretrained(path)
    known = known_to_hooked_transformer(path)
    backend = options.backend or ("transformerlens" if known else "nnsight")
    family = " ".join(config.architectures or [])
    layers = transcoder_set((each.coder for each in candidates), scan, family)
    _check_layers(layers, config, path)
    if backend == "nnsight":
        _check_nnsight(layers, config)
    elif not known:
        raise ValueError(
            f"backend='transformerlens': TransformerLens has no model {path!r}. Give "
            "--backend nnsight, which takes folders."
        )
    return ReplacementModel.from_pretrained_and_transcoders(
        path, layers, backend=backend, device=torch.device(device)
    )


def trace(model: Any, options: Namespace) -> "Graph":
    """Attribute the token after options.prompt to latents of all layers, errors and tokens."""
    from circuit_tracer import attribute

    return attribute(
        tokens_of(model.tokenizer, options.prompt),
        model,
        max_n_logits=options.max_targets,
        max_feature_nodes=options.max_latents,
        batch_size=options.batch_size,
        verbose=True,
    )


def tokens_of(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, with the beginning-of-text token first, as coders are trained."""
    # circuit-tracer itself takes another special token if the beginning-of-text token has id 0.
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if ids[:1] and ids[0] in tokenizer.all_special_ids:
        return ids
    first = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if first is None else first, *ids]


def _model_of(candidates: list["Candidate"], options: Namespace) -> str:
    """The Hub id or folder of the coders' model; SmolLM2 is written into options.output."""
    from sae_binary_ext.bundled.smollm2 import MODEL_NAME, export_smollm2
    from sae_binary_ext.measure.candidates import common_model, settings_of_model

    for candidate in candidates:
        if settings := settings_of_model(candidate):
            raise ValueError(
                f"{candidate.name}: its model was loaded with {settings} "
                "(model_from_pretrained_kwargs), and circuit-tracer loads models in float32 "
                "without processing. Train on such a model."
            )
    name = common_model(candidates, options.model)
    if options.model is None and name == MODEL_NAME:
        return str(export_smollm2(options.output / "model"))
    return name


def _check_layers(layers: "TranscoderSet", config: "PretrainedConfig", path: str) -> None:
    if len(layers) != config.num_hidden_layers or layers[0].d_model != config.hidden_size:
        raise ValueError(
            f"coders: {len(layers)} layers of width {layers[0].d_model}, and {path} has "
            f"{config.num_hidden_layers} of width {config.hidden_size}. Give a transcoder for each "
            "layer of the model."
        )


def _check_nnsight(layers: "TranscoderSet", config: "PretrainedConfig") -> None:
    from circuit_tracer.utils.tl_nnsight_mapping import get_mapping

    known = get_mapping((config.architectures or ["None"])[0]).feature_hook_mapping
    hooks = {layers.feature_input_hook, layers.feature_output_hook}
    if missing := sorted(hooks - known.keys()):
        raise ValueError(
            f"backend='nnsight': has no hooks {missing} in {config.architectures}, only "
            f"{sorted(known)}. Train transcoders there, or give --backend transformerlens if "
            "TransformerLens has the model."
        )


def _write(graph: "Graph", options: Namespace, name: str) -> Iterator[str]:
    """Write the pruned graph and its latents' texts; yields what the graph holds."""
    from circuit_tracer.graph import compute_graph_scores
    from circuit_tracer.utils.create_graph_files import create_graph_files

    thresholds = (options.node_threshold, options.edge_threshold)
    create_graph_files(graph, name, options.output, None, *thresholds)
    written = options.output / f"{name}.json"
    pruned = json.loads(written.read_text())
    latents = [node for node in pruned["nodes"] if node["feature_type"] == LATENT]
    _write_texts(graph, latents, pruned["metadata"]["prompt_tokens"], options.output / name)
    replaced, complete = compute_graph_scores(graph)
    total, used = len(graph.active_features), len(graph.selected_features)
    yield f"{total} active latents on {graph.n_pos} tokens; {used} attributed"
    yield f"{written}: {len(latents)} latents, {len(pruned['links'])} edges"
    yield f"replacement score {replaced:.3f}, completeness score {complete:.3f}"


def _write_texts(
    graph: "Graph", latents: list[dict[str, Any]], tokens: list[str], folder: Any
) -> None:
    """Write a file for each latent of the graph: its codes on the prompt, which the page shows."""
    folder.mkdir(exist_ok=True)
    active: dict[tuple[int, int], dict[int, float]] = {}
    values = graph.activation_values.tolist()
    for (layer, position, latent), value in zip(
        graph.active_features.tolist(), values, strict=True
    ):
        active.setdefault((layer, latent), {})[position] = value
    for node in latents:
        layer, latent, _ = map(int, node["node_id"].split("_"))
        codes = active[layer, latent]
        prompt = {
            "tokens": tokens,
            "tokens_acts_list": [codes.get(position, 0.0) for position in range(len(tokens))],
            "train_token_ind": node["ctx_idx"],
            "is_repeated_datapoint": False,
        }
        told = {
            "transcoder_id": str(layer),
            "index": node["feature"],
            "examples_quantiles": [{"quantile_name": "The prompt", "examples": [prompt]}],
            "top_logits": [],
            "bottom_logits": [],
            "act_min": 0.0,
            "act_max": max(codes.values()),
        }
        (folder / f"{node['feature']}.json").write_text(json.dumps(told))
