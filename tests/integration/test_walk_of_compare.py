"""Count the files to open in order to follow `compare` on one coder from call to report."""

import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# Both adapters are imported here, so that they are registered before the walk starts.
import sae_binary_ext.saelens
import sae_binary_ext.sparsify
from sae_binary_ext.commands import run_compare
from tests.integration.compare_helpers import config_of, save_coders

PACKAGE = Path(sae_binary_ext.__file__).parent
MOST = 30


def test_compare_on_one_coder_enters_few_files(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    """The count is of the package's files in which a function, a method or a lambda is called.

    The bodies of modules and classes do not count, because they run on import. Methods written by
    dataclasses do not count either, because they stand in no file. The coder is a binary one, saved
    by SAELens.
    """
    coder = save_coders(tmp_path, tiny_model_folder)[0]
    config = config_of(tiny_model_folder, tiny_dataset, tmp_path / "out")
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        # This flag is not set for the body of a module or a class.
        if event == "call" and frame.f_code.co_flags & 0x2:
            called.add(frame.f_code)

    sys.setprofile(note)
    try:
        run_compare([coder], config)
    finally:
        sys.setprofile(None)
    files = {Path(code.co_filename) for code in called}
    entered = sorted(
        str(file.relative_to(PACKAGE))
        for file in files
        if file.is_relative_to(PACKAGE) and file.suffix == ".py"
    )
    assert len(entered) <= MOST, entered
