"""If a process is killed at any moment of a save, the old or the new checkpoint is left."""

import os
import signal
import stat
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sae_lens import SAE
from sparsify import SparseCoder

from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
)
from sae_binary_ext.saving import replacing
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.limits import not_root, small_files

posix = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")

D = 4
# Steps of a save: calls to the file system, by the names that Python's audit hooks report.
STEPS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.link",
    "os.remove",
    "os.rmdir",
    "ctypes.call_function",
)


def killed_at(step: int, save: Callable[[], Any]) -> bool:
    """Run a save in a child process and kill it at this step. False if the save ended first."""
    child = os.fork()
    if child == 0:
        done = 0

        def watch(event: str, arguments: object) -> None:
            nonlocal done
            if event in STEPS:
                done += 1
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        save()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def saelens_coder(latents: int) -> Any:
    return BinarySAE(BinarySAEConfig(d_in=D, d_sae=latents, k=latents // 2))


def training_coder(latents: int) -> Any:
    return BinaryTrainingSAE(BinaryTrainingSAEConfig(d_in=D, d_sae=latents, k=latents // 2))


def topk_transcoder(latents: int) -> Any:
    return TopKTranscoder(TopKTranscoderConfig(d_in=D, d_sae=latents, k=latents // 2))


def sparsify_coder(latents: int) -> Any:
    return SparseCoder(D, BinarySparseCoderConfig(num_latents=latents, k=latents // 2))


def load_saelens(folder: Path) -> int:
    sae: Any = SAE.load_from_disk(folder)
    assert sae.cfg.k == sae.W_enc.shape[1] // 2
    return sae.W_enc.shape[1]


def load_sparsify(folder: Path) -> int:
    # delphi and users load each folder of a run in this way.
    (coder,) = SparseCoder.load_many(str(folder.parent), local=True).values()
    assert coder.cfg.k == coder.encoder.weight.shape[0] // 2
    return coder.encoder.weight.shape[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("make", "save", "load"),
    [
        (saelens_coder, "save_model", load_saelens),
        *(
            pytest.param(*case, marks=pytest.mark.integration)
            for case in (
                (training_coder, "save_inference_model", load_saelens),
                (topk_transcoder, "save_model", load_saelens),
                (sparsify_coder, "save_to_disk", load_sparsify),
            )
        ),
    ],
)
def test_a_killed_save_leaves_the_old_or_the_new_checkpoint(
    make: Callable[[int], Any], save: str, load: Callable[[Path], int], tmp_path: Path
):
    old, new = make(8), make(16)
    folder = tmp_path / "runs" / "run" / "coder"
    outcomes: list[int] = []
    for step in range(1, 100):
        getattr(old, save)(folder)
        killed = killed_at(step, lambda: getattr(new, save)(folder))
        outcomes.append(load(folder))
        if not killed:
            break
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {8, 16}
    assert len(outcomes) > 8
    # A save that ends removes the files that killed saves left.
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_first_save_leaves_no_folder_or_a_whole_one(tmp_path: Path):
    coder = sparsify_coder(8)
    for step in range(1, 100):
        folder = tmp_path / "runs" / f"run{step}" / "coder"
        killed = killed_at(step, lambda: coder.save_to_disk(folder))  # noqa: B023
        assert not folder.exists() or load_sparsify(folder) == 8
        if not killed:
            break
    assert folder.exists()


def write_both(folder: Path, text: str) -> None:
    for name in ("cfg.json", "weights"):
        (folder / name).write_text(text)


def test_other_files_stay(tmp_path: Path):
    (tmp_path / "coder").mkdir()
    write_both(tmp_path / "coder", "old")
    (tmp_path / "coder" / "notes.txt").write_text("mine")
    with replacing(tmp_path / "coder") as new:
        write_both(new, "new")
    contents = {path.name: path.read_text() for path in (tmp_path / "coder").iterdir()}
    assert contents == {"cfg.json": "new", "weights": "new", "notes.txt": "mine"}


def test_an_error_leaves_the_old_folder(tmp_path: Path):
    (tmp_path / "coder").mkdir()
    write_both(tmp_path / "coder", "old")

    def save() -> None:
        with replacing(tmp_path / "coder") as new:
            (new / "weights").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert (tmp_path / "coder" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["coder"]


def test_a_folder_of_folders_is_replaced_at_once_and_others_stay(tmp_path: Path):
    (tmp_path / "run" / "layer").mkdir(parents=True)
    (tmp_path / "run" / "best" / "layer").mkdir(parents=True)
    for folder in ("layer", "best/layer"):
        write_both(tmp_path / "run" / folder, "old")
    before = (tmp_path / "run").stat().st_ino
    with replacing(tmp_path / "run") as new:
        (new / "layer").mkdir()
        write_both(new / "layer", "new")
        (new / "state").write_text("new")
    assert (tmp_path / "run" / "layer" / "weights").read_text() == "new"
    assert (tmp_path / "run" / "best" / "layer" / "weights").read_text() == "old"
    assert (tmp_path / "run" / "state").read_text() == "new"
    assert (tmp_path / "run").stat().st_ino != before


@pytest.mark.parametrize(
    ("make", "save", "load"),
    [
        (saelens_coder, "save_model", load_saelens),
        (training_coder, "save_inference_model", load_saelens),
        (sparsify_coder, "save_to_disk", load_sparsify),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(
    make: Callable[[int], Any], save: str, load: Callable[[Path], int], tmp_path: Path
):
    folder = tmp_path / "run" / "coder"
    getattr(make(8), save)(folder)
    with small_files(1000), pytest.raises(Exception, match="File too large") as error:
        getattr(make(64), save)(folder)
    assert error.value.__notes__ == [f"This was a save to {folder}, where nothing has changed."]
    assert load(folder) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unwritable_folder_keeps_its_checkpoint_and_is_named():
    # The folder is not one of pytest's, because only their owner may read those.
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs" / "run" / "coder"
        sparsify_coder(8).save_to_disk(folder)
        for path in (Path(place), *folder.parents[:2], folder):
            path.chmod(0o555)
        with not_root(), pytest.raises(PermissionError, match=f"{place}/runs"):
            sparsify_coder(16).save_to_disk(folder)
        assert load_sparsify(folder) == 8
        for path in (Path(place), *folder.parents[:2], folder):
            path.chmod(0o755)


def test_the_working_directory_and_its_subfolders_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "coder" / "sub").mkdir(parents=True)
    write_both(tmp_path / "coder", "old")
    monkeypatch.chdir(tmp_path / "coder" / "sub")
    with replacing(Path("..")) as new:
        write_both(new, "new")
    assert Path("../weights").read_text() == "new"
    assert Path("../sub").samefile(Path.cwd())


def permissions(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def as_owner_of(path: Path, mode: int) -> None:
    """Give a file or folder a mode and, if this user is root, another owner and group."""
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    path.chmod(mode)


@posix
@pytest.mark.parametrize("mode", [0o2700, 0o700, 0o2775, 0o1777, 0o750])
@pytest.mark.parametrize(
    ("make", "save"),
    [
        (saelens_coder, "save_model"),
        (training_coder, "save_inference_model"),
        (topk_transcoder, "save_model"),
        (sparsify_coder, "save_to_disk"),
    ],
)
def test_a_save_keeps_the_permissions_of_what_it_replaces(
    make: Callable[[int], Any], save: str, mode: int, tmp_path: Path
):
    folder = tmp_path / "run" / "coder"
    getattr(make(8), save)(folder)
    (folder / "sub" / "deep").mkdir(parents=True)
    config, other = folder / "cfg.json", folder / "notes.txt"
    other.write_text("mine")
    for path in (config, other):
        as_owner_of(path, 0o640)
    for path in (folder / "sub" / "deep", folder / "sub", folder):
        as_owner_of(path, mode)
    paths = (config, other, folder / "sub" / "deep", folder / "sub", folder)
    before = {path: permissions(path) for path in paths}
    old = config.read_text()
    for _ in range(2):
        getattr(make(16), save)(folder)
    assert config.read_text() != old
    assert {path: permissions(path) for path in paths} == before


@posix
def test_folders_of_a_run_that_is_replaced_keep_theirs(tmp_path: Path):
    (tmp_path / "run" / "layer").mkdir(parents=True)
    (tmp_path / "run" / "best" / "layer").mkdir(parents=True)
    for folder in ("layer", "best/layer"):
        write_both(tmp_path / "run" / folder, "old")
        (tmp_path / "run" / folder / "weights").chmod(0o600)
    paths = [tmp_path / "run" / name for name in ("layer", "best/layer", "best", ".")]
    for path in paths:
        as_owner_of(path, 0o2700)
    paths += [path / "weights" for path in paths[:2]]
    before = {path: permissions(path) for path in paths}
    with replacing(tmp_path / "run") as new:
        (new / "layer").mkdir()
        write_both(new / "layer", "new")
    assert (tmp_path / "run" / "layer" / "weights").read_text() == "new"
    assert {path: permissions(path) for path in paths} == before


@posix
@pytest.mark.parametrize("parent_mode", [0o755, 0o2755])
@pytest.mark.parametrize("grandparent_mode", [0o755, 0o2755])
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_new_folder_gets_what_mkdir_gives(
    mask: int, grandparent_mode: int, parent_mode: int, tmp_path: Path
):
    parent = tmp_path / "runs" / "run"
    parent.mkdir(parents=True)
    as_owner_of(parent.parent, grandparent_mode)
    if os.geteuid() == 0:
        os.chown(parent, 12, 56)
    parent.chmod(parent_mode)
    before = os.umask(mask)
    try:
        (parent / "plain").mkdir()
        (parent / "plain" / "file").write_text("")
        with replacing(parent / "coder") as new:
            (new / "file").write_text("")
    finally:
        os.umask(before)
    for name in (".", "file"):
        assert permissions(parent / "coder" / name) == permissions(parent / "plain" / name)


@posix
def test_files_replaced_one_by_one_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "coder"
    folder.mkdir()
    write_both(folder, "old")
    as_owner_of(folder / "weights", 0o600)
    before = permissions(folder / "weights")
    monkeypatch.chdir(folder)
    with replacing(folder) as new:
        write_both(new, "new")
    assert (folder / "weights").read_text() == "new"
    assert permissions(folder / "weights") == before


@pytest.mark.skipif(sys.platform != "linux", reason="access control lists of Linux")
@pytest.mark.parametrize("exists", [True, False])
def test_access_control_lists_are_kept_or_inherited(exists: bool, tmp_path: Path):
    """An entry of the list lets user 12 read and enter, which no file mode can express."""

    def entry(tag: int, rights: int, who: int = 0xFFFFFFFF) -> bytes:
        return struct.pack("<HHI", tag, rights, who)

    entries = (entry(1, 7), entry(2, 5, 12), entry(4, 5), entry(16, 5), entry(32, 0))
    acl = struct.pack("<I", 2) + b"".join(entries)
    folder = tmp_path / "run" / "coder"
    target = folder if exists else folder.parent
    target.mkdir(parents=True)
    default, access = "system.posix_acl_default", "system.posix_acl_access"
    try:
        os.setxattr(target, default, acl)
    except OSError:
        pytest.skip("the file system has no access control lists")
    if exists:
        os.setxattr(folder, access, acl)
        expected = folder
    else:
        expected = folder.parent / "plain"
        expected.mkdir()
    (expected / "plain").write_text("")
    wanted = {name: os.getxattr(expected, name) for name in (default, access)}
    of_files = os.getxattr(expected / "plain", access)
    with replacing(folder) as new:
        write_both(new, "new")
    assert {name: os.getxattr(folder, name) for name in (default, access)} == wanted
    assert os.getxattr(folder / "weights", access) == of_files
