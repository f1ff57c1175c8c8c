"""Coders of any format, as either host has them."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sae_binary_ext.checkpoints import saelens, sparsify, stock
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.formats import FORMATS, format_of
from sae_binary_ext.checkpoints.hook_names import (
    model_class_of,
    place_in_saelens,
    place_in_sparsify,
    stated_hook,
)
from sae_binary_ext.checkpoints.normalization import with_decoder_norms_folded
from sae_binary_ext.checkpoints.portable import Place, PortableCoder
from sae_binary_ext.checkpoints.runs import SEED, with_text_settings
from sae_binary_ext.checkpoints.sources import (
    METRICS_FILE,
    SPARSITY_FILE,
    check_name,
    check_stated,
    find_coder,
    find_coders,
    is_told,
    read_coder,
    stated_place,
)
from sae_binary_ext.saving import replacing

# What was recorded of a coder holds for it in any format.
RECORDS = (SPARSITY_FILE, METRICS_FILE)

Host = Literal["saelens", "sparsify"]


def load_coder(
    source: str | Path, hookpoint: str | None = None, host: Host = "saelens", device: str = "cpu"
) -> Any:
    """A coder of any format, for inference in either host.

    Args:
        source: a coder's folder, a folder of such folders, or the id of a Hub repository of either.
            Formats: SAELens', sparsify's, and the files of both papers.
        hookpoint: the coder's folder in the source ("." for its root). If the source is a coder's
            own folder whose files and name do not tell where it belongs, its hookpoint (layers.9)
            or SAELens' name of its hook.
        host: whose coder to return.
        device: where to put it.

    Returns:
        SAELens' SAE or sparsify's SparseCoder, in the dtype of the file.

    Raises:
        CheckpointError: there is no such coder, its files are damaged or unsafe, the host cannot
            express it, or its hook has no name in SAELens.
        ModuleNotFoundError: the host is not installed; the message says how to install it.
    """
    _check_host(host, ("saelens", "sparsify"))
    name, folder = find_coder(source, hookpoint)
    stated = stated_place(name, hookpoint)
    load_stock = _stock_loader(folder, host)
    if load_stock is not None:
        return _at_place(_plainly(folder, lambda: load_stock(device)), stated, folder)
    coder = read_coder(folder, stated)
    if host == "sparsify":
        coder = with_decoder_norms_folded(coder)
        return _plainly(folder, lambda: sparsify.for_inference(coder)).to(device)
    return _plainly(folder, lambda: saelens.to_coder(placed(coder, "saelens"))).to(device)


def load_candidate(folder: Path, hook: str | None, device: str = "cpu") -> Any:
    """A coder for SAELens, of a folder that find_coders found.

    Args:
        folder: the coder's own.
        hook: a hook or a hookpoint, where it belongs if its files do not tell.
        device: where to put it.

    Raises:
        CheckpointError: as load_coder.
    """
    untold = _stock_loader(folder, "saelens") is None and not is_told(read_coder(folder).place)
    return load_coder(folder, hook if untold else None, device=device)


def convert(
    source: str | Path, out: str | Path, host: str = "saelens", hookpoint: str | None = None
) -> list[Path]:
    """Write coders down in another format.

    Args:
        source: as load_coder takes it.
        out: the folder of the new coder. Where the source holds several coders and none was chosen,
            the folder of their folders, each named as the format's host names its hook.
        host: the format, of saelens, sparsify, and the papers' cho2025 and quirke2025.
        hookpoint: as load_coder takes it.

    Returns:
        The folders written. Each appears, or replaces an earlier conversion, all at once; what was
        recorded of a coder (sparsity.safetensors, metrics.json) goes with it.

    Raises:
        CheckpointError: as load_coder, or the format cannot tell a coder; the message says why.
        ModuleNotFoundError: the format's host is not installed.
    """
    _check_host(host, tuple(FORMATS))
    found = find_coders(source, hookpoint)
    if len(found) == 1:
        targets = {Path(out): folder for folder in found.values()}
    else:
        targets = _targets(found, Path(out), host)
    (name, *_) = found
    for target, folder in targets.items():
        stated = stated_place(name, hookpoint)
        records = [folder / name for name in RECORDS]
        load_stock = _stock_loader(folder, host)
        if load_stock is not None:
            write = _at_place(load_stock("cpu"), stated, folder).save_model
        else:
            coder = _expressible(_to_convert(folder, stated, host), host)
            write = partial(FORMATS[host].write, coder)
        _plainly(folder, partial(_write_at_once, write, target, host, records))
    return list(targets)


def _to_convert(folder: Path, stated: str | None, host: str) -> PortableCoder:
    """The coder of a folder, at the place stated if its own hook has no name in the format."""
    if stated is not None and FORMATS[host].named_by_folder:
        coder = read_coder(folder)
        try:
            placed(coder, host)
        except CheckpointError:
            return replace(coder, place=replace(coder.place, hookpoint=stated))
    return read_coder(folder, stated)


def _expressible(coder: PortableCoder, host: str) -> PortableCoder:
    """The coder with its place in a format's words, and nothing that SAELens alone computes."""
    coder = placed(coder, host)
    return coder if host == "saelens" else with_decoder_norms_folded(coder)


def _targets(found: dict[str, Path], out: Path, host: str) -> dict[Path, Path]:
    """Of each new folder, named as its host names the coder's hook, the old one."""
    targets: dict[Path, Path] = {}
    for name, folder in found.items():
        target = out / _new_name(name, folder, host)
        if target in targets:
            raise CheckpointError(
                f"{folder.name} and {targets[target].name} belong both at {target.name}: convert "
                "them one at a time, naming each with hookpoint=..."
            )
        targets[target] = folder
    return targets


def _new_name(name: str, folder: Path, host: str) -> str:
    """A coder's path among conversions, by its host's name of its hook."""
    if _stock_loader(folder, host) is not None:
        hook_name = stock.current_config(folder).get("metadata", {}).get("hook_name")
        own = Place(hook_name=hook_name if isinstance(hook_name, str) else None)
        return renamed(name, own, own.hook_name or name)
    coder = read_coder(folder)
    place = placed(coder, host).place
    known = place.hookpoint if FORMATS[host].named_by_folder else place.hook_name
    return renamed(name, coder.place, known or name)


def renamed(name: str, place: Place, known: str) -> str:
    """A coder's path with the folder that its place named renamed.

    What stands before (best) and after it (seed0) tells coders of one place apart. Without such a
    folder the new name is the whole path, or stands above a seed's.
    """
    parts = PurePosixPath(name).parts
    seed = [part for part in parts[-1:] if SEED.fullmatch(part)]
    own = [index for index, part in enumerate(parts) if part in (place.hookpoint, place.hook_name)]
    kept = [*parts[: own[0]], known, *parts[own[-1] + 1 :]] if own else [known, *seed]
    check_name("/".join(kept))
    return "/".join(kept)


def write_coder(coder: PortableCoder, target: Path, host: str, records: Iterable[Path]) -> None:
    """Write a coder down, all at once.

    Args:
        coder: with its place in the format's words.
        target: its folder, new or written in the same format before.
        host: the format, a key of FORMATS.
        records: files of records that go with it, where they exist.

    Raises:
        CheckpointError: the format cannot tell the coder, or the folder holds other things.
    """
    _write_at_once(partial(FORMATS[host].write, coder), target, host, records)


def _write_at_once(
    write: Callable[[Path], object], target: Path, host: str, records: Iterable[Path]
) -> None:
    written = (FORMATS[host].config, FORMATS[host].weights, *RECORDS)
    others = [path.name for path in target.iterdir()] if target.is_dir() else []
    if not set(others) <= set(written):
        raise CheckpointError(
            f"{target}: holds {sorted(set(others).difference(written))}. Choose a new folder, or "
            "one that a coder was written to in the same format before."
        )
    with replacing(target) as new:
        write(new)
        for record in records:
            if record.is_file():
                shutil.copyfile(record, new / record.name)


def placed(coder: PortableCoder, host: str) -> PortableCoder:
    """The coder with its place in a format's words."""
    if FORMATS[host].named_by_folder:
        return replace(coder, place=place_in_sparsify(coder.place, coder.shape.transcoder))
    coder = replace(coder, place=place_in_saelens(coder.place, coder.shape.transcoder))
    return _with_model_class(coder) if host == "saelens" else coder


def _with_model_class(coder: PortableCoder) -> PortableCoder:
    """The coder with the class of models that has its hook, where only one has."""
    name = model_class_of(coder.place.hook_name)
    told = coder.settings.get("saelens", {})
    if name is None or "model_class_name" in told:
        return coder
    settings = {**coder.settings, "saelens": {**told, "model_class_name": name}}
    return replace(coder, settings=settings)


def coder_to_saelens(
    coder: Any, hookpoint: str | None = None, model_name: str | None = None
) -> Any:
    """A sparsify coder as SAELens has it: a coder of its own, with the same codes and outputs.

    Args:
        coder: a SparseCoder of activation topk or a binary one.
        hookpoint: where it belongs; translated into SAELens' names.
        model_name: the model it belongs to, where names depend on it.

    Raises:
        CheckpointError: SAELens has no such architecture, or no name for the hookpoint.
    """
    portable = sparsify.from_coder(coder)
    place = replace(portable.place, hookpoint=hookpoint, model_name=model_name)
    told = with_text_settings(replace(portable, place=place), {})
    return saelens.to_coder(placed(told, "saelens"))


def coder_to_sparsify(coder: Any) -> Any:
    """A SAELens coder as sparsify has it: a coder of its own, with the same codes and outputs.

    save_to_disk writes it; sparsify and delphi look for it in a folder named by its hookpoint.

    Args:
        coder: of one of this package's architectures, or topk.

    Raises:
        CheckpointError: sparsify has no place for something of it; the message names it.
    """
    return sparsify.to_coder(with_decoder_norms_folded(saelens.from_coder(coder)))


def _check_host(host: str, choices: tuple[str, ...]) -> None:
    if host not in choices:
        raise CheckpointError(f"host={host!r}: choose one of {sorted(choices)}.")


def _stock_loader(folder: Path, host: str) -> Callable[[str], Any] | None:
    """SAELens' own loader, for its own architectures and files."""
    if host != "saelens" or format_of(folder) != "saelens" or not saelens.is_stock(folder):
        return None
    return partial(stock.load, folder)


def _at_place(coder: Any, stated: str | None, folder: Path) -> Any:
    """SAELens' own coder, after its files were found to belong where its user states."""
    metadata = coder.cfg.metadata
    if stated is not None and metadata.hook_name is None:
        metadata.hook_name = stated_hook(stated, metadata.model_name)
    elif stated is not None:
        check_stated(folder, [metadata.hook_name], stated, metadata.model_name)
    return coder


def _plainly(folder: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (CheckpointError, ModuleNotFoundError):
        raise
    # A host raises whatever an unexpected value leads to.
    except Exception as error:
        raise CheckpointError(f"{folder}: its host cannot have it: {error}") from error
