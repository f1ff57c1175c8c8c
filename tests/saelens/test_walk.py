"""Counts the files that a reader opens to follow a batch from SAELens' trainer to saved codes.

The tests count files of this package in which a function is called, as sys.setprofile reports.
Bodies of modules and classes, which run on import, and files of other packages are not counted.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

import sae_binary_ext
from sae_binary_ext.saelens import BinaryTrainingSAEConfig
from tests.saelens.helpers import trainer_for

PACKAGE = Path(sae_binary_ext.__file__).parent
# A whole step, with its losses and gradients, also enters these files.
OF_LOSSES = {
    "coding/decode.py",
    "coding/surrogate.py",
    "coding/variance.py",
    "training/collapse.py",
}


@contextmanager
def noting_files(found: list[str]) -> Generator[None]:
    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and PACKAGE in path.parents:
            found.append(str(path.relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_batch_enters_few_files_from_the_trainer_to_saved_codes(
    clustered_activations: Tensor, tmp_path: Path
):
    """The count covers the trainer's second step up to the batch's codes, and the save. It leaves
    out the decoder, losses and gradients, and the first step, which fits the start to data."""
    config = BinaryTrainingSAEConfig(d_in=16, d_sae=64, k=8)
    trainer = trainer_for(config, clustered_activations)
    trainer.step(next(trainer.data_provider))
    batch = next(trainer.data_provider)
    step: list[str] = []
    save: list[str] = []
    with noting_files(step):
        trainer.step(batch)
    with noting_files(save):
        trainer.sae.save_inference_model(tmp_path)
    to_codes = set(step[: step.index("coding/decode.py")])
    assert len(to_codes | set(save)) <= 12, sorted(to_codes | set(save))
    assert set(step) - to_codes <= OF_LOSSES


def test_a_saved_coder_s_codes_enter_few_files(clustered_activations: Tensor, tmp_path: Path):
    config = BinaryTrainingSAEConfig(d_in=16, d_sae=64, k=8)
    trainer_for(config, clustered_activations, steps=2).fit().save_inference_model(tmp_path)
    coder = SAE.load_from_disk(tmp_path)
    entered: list[str] = []
    with noting_files(entered), torch.no_grad():
        coder.encode(clustered_activations)
    assert len(set(entered)) <= 7, sorted(set(entered))
