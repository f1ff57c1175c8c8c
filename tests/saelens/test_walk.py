"""How many files a reader opens who follows a batch from SAELens' trainer to saved codes.

Counted are the files of this package in which a function is called, as sys.setprofile reports it.
Bodies of modules and classes, which run on import, and files of the hosts are not counted.
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
MOST = 12


@contextmanager
def noting_files(found: set[str]) -> Generator[None]:
    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and PACKAGE in path.parents:
            found.add(str(path.relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_batch_enters_few_files_from_the_trainer_to_saved_codes(
    clustered_activations: Tensor, tmp_path: Path
):
    """One step of topk, past the first, which starts from data; the save; the codes again."""
    config = BinaryTrainingSAEConfig(d_in=16, d_sae=64, k=8)
    trainer = trainer_for(config, clustered_activations)
    trainer.step(next(trainer.data_provider))
    step: set[str] = set()
    save: set[str] = set()
    codes: set[str] = set()
    with noting_files(step):
        trainer.step(next(trainer.data_provider))
    with noting_files(save):
        trainer.sae.save_inference_model(tmp_path)
    coder = SAE.load_from_disk(tmp_path)
    with noting_files(codes), torch.no_grad():
        coder.encode(clustered_activations)
    print(sorted(step))
    print(sorted(save))
    print(sorted(codes))
    assert len(step | save | codes) <= MOST, sorted(step | save | codes)
