import pytest

from sae_binary_ext.commands import DemoConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training_tokens": 0}, "training_tokens=0"),
        ({"held_out_tokens": -1}, "held_out_tokens=-1"),
        ({"k": 0}, "k=0"),
        ({"expansion": 3}, "expansion=3.*even"),
        ({"context_size": 1}, "context_size=1"),
        ({"batch_size": 2000, "training_tokens": 1000}, "batch_size=2000.*training_tokens=1000"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        DemoConfig(**fields)  # type: ignore[arg-type]


def test_the_hook_is_the_residual_stream_entering_the_layer():
    assert DemoConfig(layer=4).hook_name == "blocks.4.hook_resid_pre"
