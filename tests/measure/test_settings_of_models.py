"""Settings in coders' files that change a model's activations are compared and checked."""

from typing import Any

import pytest

from sae_binary_ext.measure.in_model import decisive_settings


@pytest.mark.parametrize(
    ("settings", "decisive"),
    [
        (None, {}),
        ({"center_writing_weights": False}, {}),
        ({"fold_ln": False, "dtype": "torch.float32", "n_devices": 4, "device_map": "auto"}, {}),
        ({"trust_remote_code": True}, {}),
        ({"center_writing_weights": True, "fold_ln": False}, {"center_writing_weights": True}),
        ({"torch_dtype": "torch.bfloat16"}, {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"revision": "step1000"}, {"revision": "step1000"}),
    ],
)
def test_settings_that_load_the_same_model_are_equal(settings: Any, decisive: dict[str, Any]):
    assert decisive_settings(settings) == decisive


def test_a_setting_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"\['load_in_8bit'\] may change.*Known are.*fold_ln"):
        decisive_settings({"load_in_8bit": True})
