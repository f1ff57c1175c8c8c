"""Loads coders of any format into either host, and converts them."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import Tensor

from sae_binary_ext.checkpoints import hook_names, saelens, sources, sparsify, stock, stock_forms
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import errors_told
from sae_binary_ext.checkpoints.normalization import with_decoder_norms_folded
from sae_binary_ext.checkpoints.portable import Place, PortableCoder
from sae_binary_ext.checkpoints.published import find_published, load_published
from sae_binary_ext.checkpoints.runs import SEED, with_text_settings
from sae_binary_ext.checkpoints.sources import FORMATS, STOCK, format_of
from sae_binary_ext.saving import replacing

# Files with statistics of a coder, which stay valid if the coder's format changes.
RECORDS = (sources.SPARSITY_FILE, sources.METRICS_FILE)

Host = Literal["saelens", "sparsify"]

# Formats that cannot store the codes of any coder here, and why.
NOT_WRITTEN = {
    "circuit-tracer": "circuit-tracer's files know ReLU and JumpReLU alone, so its loader would "
    "give other outputs for binary and topk codes. Keep the coders in their own format. "
    "sae_binary_ext.circuits.transcoder_set(coders) makes circuit-tracer's transcoders of them, "
    "and `sae-binary circuit` writes graphs for its page."
}


def load_coder(
    source: str | Path, hookpoint: str | None = None, host: Host = "saelens", device: str = "cpu"
) -> Any:
    """Load a coder of any format, for inference in SAELens or sparsify.

    Args:
        source: a coder's folder, a folder of coders' folders, the id of a Hub repository, or one
            with a coder's folder (user/repo/layers.9). Formats: SAELens', sparsify's, and the files
            of both papers. Also a release and an id of SAELens
            (gpt2-small-res-jb/blocks.8.hook_resid_pre), or a repository in another library's
            format with the path that SAE.from_pretrained takes; in float32.
        hookpoint: the coder's folder in the source ("." for its root). If the source is one
            coder's folder, and its files and name do not tell its place in the model, give its
            hookpoint (layers.9) or SAELens' name of its hook.
        host: the library whose coder to return.
        device: the device to put the coder on.

    Returns:
        SAELens' SAE or sparsify's SparseCoder, in the dtype of the file.

    Raises:
        CheckpointError: there is no such coder, its files are damaged or unsafe, the host cannot
            express it, or its hook has no name in SAELens.
        ModuleNotFoundError: the host is not installed; the message says how to install it.
    """
    _check_host(host, ("saelens", "sparsify"))
    if (found := find_published(source, hookpoint)) is not None:
        stock_coder = load_published(found, device)
        return stock_coder if host == "saelens" else coder_to_sparsify(stock_coder)
    return _load_in_own_formats(source, hookpoint, host, device)


def _load_in_own_formats(source: str | Path, hookpoint: str | None, host: str, device: str) -> Any:
    """As load_coder, for a source that is no published coder of another library."""
    source, hookpoint = sources.split(source, hookpoint)
    name, folder = sources.find_coder(source, hookpoint)
    stated = sources.stated_place(name, hookpoint)
    if _is_stock(folder, host):
        return _load_stock(folder, stated, device)
    coder = sources.read_coder(folder, stated)
    if host == "sparsify":
        coder = with_decoder_norms_folded(coder)
        with errors_told(f"{folder}: its host refuses it"):
            return sparsify.for_inference(coder).to(device)
    coder = placed(coder, host)
    with errors_told(f"{folder}: its host refuses it"):
        return saelens.to_coder(coder).to(device)


def load_candidate(folder: Path, hook: str | None, device: str = "cpu") -> Any:
    """Load a folder's coder in SAELens. The hook is its place if its files do not tell one."""
    if _is_stock(folder, "saelens") or sources.is_told(sources.read_coder(folder).place):
        hook = None
    return _load_in_own_formats(folder, hook, "saelens", device)


def hub_converter(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor], None]:
    """Read a coder of any format: SAE.from_pretrained(repo, folder, converter=hub_converter).

    force_download downloads files again even if they are on this machine. cfg_overrides are config
    fields that replace the coder's. Returns the config, the tensors by SAELens' names, and None for
    firing rates.

    Raises:
        CheckpointError: see load_coder.
    """
    if force_download:
        from huggingface_hub import snapshot_download

        snapshot_download(repo_id, allow_patterns=f"{folder_name}/*", force_download=True)
    return *disk_converter(repo_id, device, cfg_overrides, hookpoint=folder_name), None


def disk_converter(
    path: str | Path,
    device: str = "cpu",
    cfg_overrides: dict[str, Any] | None = None,
    hookpoint: str | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a coder of any format: SAE.load_from_disk(folder, converter=disk_converter).

    cfg_overrides are config fields that replace the coder's, and hookpoint is as load_coder takes
    it. Returns the config and the tensors by SAELens' names.

    Raises:
        CheckpointError: see load_coder.
    """
    coder = load_coder(path, hookpoint, host="saelens", device=device)
    config = {**coder.cfg.to_dict(), "device": device, **(cfg_overrides or {})}
    return config, coder.state_dict()


def convert(
    source: str | Path,
    out: str | Path,
    host: str = "saelens",
    hookpoint: str | None = None,
    architecture: str | None = None,
) -> list[Path]:
    """Write coders in another format.

    Args:
        source: see load_coder.
        out: the folder of the new coder. If the source holds several coders and none was chosen,
            each gets a folder in `out`, named as the format's host names its hook.
        host: the format: saelens, sparsify, or the papers' cho2025 and quirke2025. stock writes a
            coder of SAELens' own architectures, which loads without this package.
        hookpoint: see load_coder.
        architecture: SAELens' name of the stock architecture; None takes gated.

    Returns:
        The folders written. Each folder appears complete, and may replace an older conversion.
        A coder's records (sparsity.safetensors, metrics.json) are copied with it.

    Raises:
        CheckpointError: see load_coder, or the format cannot store a coder for a stated reason. A
            stock form with other codes takes text: see measure.export_stock.
        ModuleNotFoundError: the format's host is not installed.
    """
    _check_host(host, (*FORMATS, STOCK))
    if architecture is not None and host != STOCK:
        raise CheckpointError(f"architecture={architecture!r}: only host={STOCK!r} takes it.")
    form = "saelens" if host == STOCK else host
    coders = coders_to_convert(source, out, form, hookpoint)
    for target, (folder, coder) in coders.items():
        with errors_told(f"{folder}: its host refuses it"):
            if host == STOCK:
                coder = stock_forms.exact(own_coder(coder), architecture)
            write_coder(coder, target, form, [folder / record for record in RECORDS])
    return list(coders)


def coders_to_convert(
    source: str | Path, out: str | Path, form: str, hookpoint: str | None
) -> dict[Path, tuple[Path, Any]]:
    """For each new folder, the folder it is converted from and its coder, for write_coder."""
    source, hookpoint = sources.split(source, hookpoint)
    found = sources.find_coders(source, hookpoint)
    if len(found) == 1:
        targets = {Path(out): folder for folder in found.values()}
    else:
        targets = _targets(found, Path(out), form)
    stated = sources.stated_place(next(iter(found)), hookpoint)
    return {
        target: (folder, _to_convert(folder, stated, form)) for target, folder in targets.items()
    }


def own_coder(coder: Any) -> PortableCoder:
    """The coder, if it is portable. CheckpointError if it is one of SAELens' own architectures."""
    if isinstance(coder, PortableCoder):
        return coder
    raise CheckpointError(
        f"architecture={coder.cfg.architecture()!r}: is stock already. SAELens loads it without "
        "this package: SAE.load_from_disk(folder)."
    )


def _to_convert(folder: Path, stated: str | None, host: str) -> Any:
    """Read a folder's coder for write_coder. A stated place becomes the coder's place."""
    if _is_stock(folder, host):
        return _load_stock(folder, stated, "cpu")
    coder = sources.read_coder(folder)
    if stated is not None:
        nameless = False
        try:
            placed(coder, host)
        except CheckpointError:  # the format has no name for the coder's hook
            nameless = FORMATS[host].named_by_folder
        if nameless:
            coder = replace(coder, place=replace(coder.place, hookpoint=stated))
        else:
            coder = sources.read_coder(folder, stated)
    coder = placed(coder, host)
    return coder if host == "saelens" else with_decoder_norms_folded(coder)


def _targets(found: dict[str, Path], out: Path, host: str) -> dict[Path, Path]:
    """The source folder of each new folder. New folders are named by the host's names of hooks."""
    targets: dict[Path, Path] = {}
    for name, folder in found.items():
        if _is_stock(folder, host):
            hook_name = stock.current_config(folder).get("metadata", {}).get("hook_name")
            own = Place(hook_name=hook_name if isinstance(hook_name, str) else None)
            known = own.hook_name
        else:
            coder = sources.read_coder(folder)
            own, place = coder.place, placed(coder, host).place
            known = place.hookpoint if FORMATS[host].named_by_folder else place.hook_name
        target = out / _renamed(name, own, known or name)
        if target in targets:
            raise CheckpointError(
                f"{folder.name} and {targets[target].name} both belong at {target.name}: convert "
                "them one at a time, naming each with hookpoint=..."
            )
        targets[target] = folder
    return targets


def _renamed(name: str, place: Place, known: str) -> str:
    """A coder's path, in which the folder that has the name of its place gets a new name.

    Folders before it (best) and after it (seed0) tell coders of one place apart. If no folder has
    the name of the place, the path is the new name, and the folder of a seed if there is one.
    """
    parts = PurePosixPath(name).parts
    seed = [part for part in parts[-1:] if SEED.fullmatch(part)]
    own = [index for index, part in enumerate(parts) if part in (place.hookpoint, place.hook_name)]
    kept = [*parts[: own[0]], known, *parts[own[-1] + 1 :]] if own else [known, *seed]
    sources.check_name("/".join(kept))
    return "/".join(kept)


def write_coder(coder: Any, target: Path, host: str, records: Iterable[Path]) -> None:
    """Write a coder into a new folder, or over one of the same format, all at once.

    coder is a PortableCoder with the format's names for its place, or a coder of SAELens. records
    are files to copy if they exist. CheckpointError if the format cannot store the coder, or the
    folder holds other files.
    """
    written = (FORMATS[host].config, FORMATS[host].weights, *RECORDS)
    present = {path.name for path in target.iterdir()} if target.is_dir() else set[str]()
    if others := sorted(present.difference(written)):
        raise CheckpointError(
            f"{target}: holds {others}. Choose a new folder, or one that a coder was written to in "
            "the same format before."
        )
    with replacing(target) as new:
        if isinstance(coder, PortableCoder):
            FORMATS[host].write(coder, new)
        else:
            coder.save_model(new)
        for record in records:
            if record.is_file():
                shutil.copyfile(record, new / record.name)


def placed(coder: PortableCoder, host: str) -> PortableCoder:
    """The coder with a format's names for its place.

    For SAELens, the coder also gets the name of the class of models, if only one has its hook.
    """
    if FORMATS[host].named_by_folder:
        place = hook_names.place_in_sparsify(coder.place, coder.shape.transcoder)
        return replace(coder, place=place)
    place = hook_names.place_in_saelens(coder.place, coder.shape.transcoder)
    settings, class_name = coder.settings, hook_names.model_class_of(place.hook_name)
    told = settings.get("saelens", {})
    if host == "saelens" and class_name is not None and "model_class_name" not in told:
        settings = {**settings, "saelens": {**told, "model_class_name": class_name}}
    return replace(coder, place=place, settings=settings)


def coder_to_saelens(
    coder: Any, hookpoint: str | None = None, model_name: str | None = None
) -> Any:
    """A SAELens coder with the codes and outputs of a sparsify coder.

    Args:
        coder: a SparseCoder whose activation is topk or one of the binary ones.
        hookpoint: the coder's module, which is translated into SAELens' names.
        model_name: the coder's model. Set it if SAELens' names depend on the model.

    Raises:
        CheckpointError: SAELens has no such architecture, or no name for the hookpoint.
    """
    portable = sparsify.from_coder(coder)
    place = replace(portable.place, hookpoint=hookpoint, model_name=model_name)
    told = with_text_settings(replace(portable, place=place), {})
    return saelens.to_coder(placed(told, "saelens"))


def coder_to_sparsify(coder: Any) -> Any:
    """A sparsify coder with the codes and outputs of a SAELens coder, binary or topk.

    save_to_disk writes the coder. sparsify and delphi look in the folder of its hookpoint.

    Raises:
        CheckpointError: sparsify cannot store one of its settings, which the message names.
    """
    return sparsify.to_coder(with_decoder_norms_folded(saelens.from_coder(coder)))


def _check_host(host: str, choices: tuple[str, ...]) -> None:
    if host in NOT_WRITTEN:
        raise CheckpointError(f"host={host!r}: {NOT_WRITTEN[host]}")
    if host not in choices:
        raise CheckpointError(f"host={host!r}: choose one of {sorted(choices)}.")


def _is_stock(folder: Path, host: str) -> bool:
    """Whether SAELens' own loader must load a folder's coder for a host."""
    return host == "saelens" and format_of(folder) == "saelens" and saelens.is_stock(folder)


def _load_stock(folder: Path, stated: str | None, device: str) -> Any:
    """Load a coder of SAELens. CheckpointError if its files tell another place than the stated."""
    coder = stock.load(folder, device)
    metadata = coder.cfg.metadata
    if stated is not None and metadata.hook_name is None:
        metadata.hook_name = hook_names.stated_hook(stated, metadata.model_name)
    elif stated is not None:
        sources.check_stated(folder, [metadata.hook_name], stated, metadata.model_name)
    return coder
