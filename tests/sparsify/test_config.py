from typing import Any

import pytest
from simple_parsing import ArgumentParser
from sparsify import SparseCoderConfig, TrainConfig

import sae_binary_ext  # noqa: F401  # registers
from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from sae_binary_ext.sparsify.config import OF_REFINED, CommandLineCoderConfig

NOT_REFINED: tuple[dict[str, Any], ...] = (
    {"transcode": True},
    {"tied_decoder": True},
    {"multi_topk": True},
    {"matryoshka": True},
    {"entropy_alpha": 1e-3},
    {"covariance_alpha": 1e-3},
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, "activation='relu'.*topk_binary"),
        ({"normalize_decoder": True}, "normalize_decoder=True.*lives in its decoder row"),
        ({"ste": "reste"}, "ste='reste'.* re,"),
        ({"ste_temperature": 0.0}, "temperature=0.0"),
        ({"k": 0}, "k=0"),
        ({"entropy_alpha": -1.0}, "entropy_alpha=-1.0"),
        ({"covariance_alpha": float("nan")}, "covariance_alpha=nan"),
        ({"dense_alpha": -1.0}, "dense_alpha=-1.0"),
        ({"dense_rate": 0.0}, "dense_rate=0.0.*between 0 and 1"),
        ({"entropy_start_step": -1}, "entropy_start_step=-1"),
        ({"entropy_warm_up_steps": -1}, "entropy_warm_up_steps=-1"),
        ({"initial_firing_rate": 1.0}, "initial_firing_rate=1.0"),
        ({"activation": "binary", "multi_topk": True}, "multi_topk=True.*4k largest"),
        ({"activation": "gumbel_binary", "ste": "identity"}, "ste='identity'.*gumbel"),
        ({"ste_latents": "some"}, "ste_latents='some'"),
        ({"ste_latents": "all", "activation": "binary"}, "ste_latents='all'.*topk_binary alone"),
        (
            {"encoder_trains_b_dec": True, "transcode": True},
            "encoder_trains_b_dec=True.*transcoder",
        ),
        ({"encoder_trains_b_dec": True, "subtract_b_dec": False}, "encoder_trains_b_dec=True"),
        ({"tied_decoder": True, "transcode": True}, "tied_decoder=True with transcode=True.*Leave"),
        (
            {"tied_decoder": True, "initial_firing_rate": 0.1},
            "initial_firing_rate=0.1 with tied_decoder=True.*Leave",
        ),
        ({"matryoshka": True, "matryoshka_groups": 0}, "matryoshka_groups=0"),
        ({"refine_passes": -1}, "refine_passes=-1.*at least 0"),
        ({"refine_passes": 2.5}, "refine_passes=2.5.*whole"),
        ({"refine_passes": 1, "cost_of_bit": -1.0}, "cost_of_bit=-1.0.*at least 0"),
        ({"refine_passes": 1, "training_passes": 0}, "training_passes=0.*at least 1"),
        ({"cost_of_bit": 1e-3}, "cost_of_bit=0.001 with refine_passes=0.*refine_passes=12"),
        ({"training_passes": 2}, "training_passes=2 with refine_passes=0.*refine_passes=12"),
        *(
            ({"refine_passes": 3, **fields}, "with refine_passes=3.*Leave one of the two out")
            for fields in NOT_REFINED
        ),
        ({"activation": "topk", "refine_passes": 3}, "refine_passes=3.*no effect"),
        ({"activation": "topk", "matryoshka": True}, "matryoshka=True.*no effect"),
        ({"activation": "topk", "entropy_alpha": 0.1}, "entropy_alpha=0.1.*no effect"),
        ({"activation": "groupmax", "ste": "re"}, "ste='re'.*no effect"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        BinarySparseCoderConfig(**fields)


@pytest.mark.parametrize("config", [SparseCoderConfig, BinarySparseCoderConfig])
def test_a_dict_becomes_the_config_of_its_activation(config: type[SparseCoderConfig]):
    ours = BinarySparseCoderConfig(activation="binary", ste="re", entropy_alpha=1e-3)
    assert config.from_dict(ours.to_dict()) == ours
    assert type(config.from_dict(ours.to_dict())) is BinarySparseCoderConfig
    assert not ours.normalize_decoder


def test_the_fields_of_refined_codes_are_in_the_dict_of_a_refined_coder_alone():
    refined = BinarySparseCoderConfig(refine_passes=2, cost_of_bit=1e-3)
    assert SparseCoderConfig.from_dict(refined.to_dict()) == refined
    plain = BinarySparseCoderConfig().to_dict()
    assert refined.to_dict().keys() - plain.keys() == set(OF_REFINED)


def test_a_stock_dict_stays_stock():
    stock = SparseCoderConfig(activation="groupmax", k=4)
    read = SparseCoderConfig.from_dict(stock.to_dict(), drop_extra_fields=True)
    assert type(read) is SparseCoderConfig
    assert read == stock


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (SparseCoderConfig, {"activation": "step"}),
        (BinarySparseCoderConfig, {"activation": "step"}),
        (TrainConfig, {"sae": {"activation": "step"}}),
    ],
)
def test_an_unknown_activation_raises(config: Any, settings: dict[str, Any]):
    with pytest.raises(ValueError, match=r"activation='step'.*topk_binary"):
        config.from_dict(settings)


def test_an_unknown_key_raises():
    fields = {"activation": "topk_binary", "colour": 1}
    with pytest.raises(ValueError, match="colour="):
        SparseCoderConfig.from_dict(fields, drop_extra_fields=True)


def test_the_matryoshka_loss_of_sparsify_s_own_coders_is_of_no_account_in_a_file():
    """The first paper's code writes these fields for every coder."""
    fields = {"activation": "topk", "matryoshka": True, "matryoshka_groups": 3}
    config = BinarySparseCoderConfig.from_dict(fields, drop_extra_fields=True)
    assert not config.is_binary()
    with pytest.raises(ValueError, match="matryoshka=True"):
        BinarySparseCoderConfig.from_dict(fields)


@pytest.mark.parametrize(
    ("activation", "says", "subtracts"),
    [("binary", {}, False), ("binary", {"subtract_b_dec": True}, True), ("topk_binary", {}, True)],
)
def test_a_file_that_does_not_say_so_was_trained_as_the_paper_did(
    activation: str, says: dict[str, Any], subtracts: bool
):
    fields = {"activation": activation, "tied_decoder": False, "matryoshka_groups": 5, **says}
    config = SparseCoderConfig.from_dict(fields, drop_extra_fields=True)
    assert config.subtract_b_dec is subtracts
    assert BinarySparseCoderConfig(activation=activation).subtract_b_dec


def test_train_config_round_trips():
    config = TrainConfig(BinarySparseCoderConfig(activation="gumbel_binary"), hookpoints=["x"])
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert type(TrainConfig.from_dict(config.to_dict()).sae) is BinarySparseCoderConfig


def test_a_stock_activation_trains_from_a_stock_config():
    config = TrainConfig(BinarySparseCoderConfig(activation="topk", k=4))
    assert type(config.sae) is SparseCoderConfig
    assert config.sae == SparseCoderConfig(activation="topk", k=4)


def test_a_stock_train_config_reads_as_before():
    config = TrainConfig.from_dict({"sae": {"k": 4, "a_field_of_old": 1}, "batch_size": 2})
    assert type(config.sae) is SparseCoderConfig
    assert config == TrainConfig(SparseCoderConfig(k=4), batch_size=2)


@pytest.mark.parametrize(
    ("config", "learn"),
    [
        (BinarySparseCoderConfig(), "near"),
        (BinarySparseCoderConfig(activation="groupmax_binary"), "selected"),
        (BinarySparseCoderConfig(activation="binary"), "selected"),
        (BinarySparseCoderConfig(ste_latents="all"), "all"),
        (BinarySparseCoderConfig.quirke2025(), "selected"),
        (BinarySparseCoderConfig.cho2025(), "selected"),
    ],
)
def test_near_latents_learn_in_topk_coders_but_the_paper_s(
    config: BinarySparseCoderConfig, learn: str
):
    assert config.code_rule().surrogate_latents == learn


def test_presets_carry_their_optimizer():
    quirke = BinarySparseCoderConfig.quirke2025(k=64, transcode=True).train_config(layers=[3])
    assert (quirke.sae.k, quirke.sae.transcode, quirke.sae.ste_temperature) == (64, True, 2.0)
    assert (quirke.optimizer, quirke.lr, quirke.layers) == ("signum", None, [3])
    gumbel = BinarySparseCoderConfig.quirke2025(activation="gumbel_binary")
    assert gumbel.ste_temperature == 0.5

    cho = BinarySparseCoderConfig.cho2025().train_config(lr=1e-3)
    assert (cho.sae.activation, cho.sae.expansion_factor) == ("binary", 4)
    assert cho.sae.entropy_alpha == cho.sae.covariance_alpha == 1e-7
    assert (cho.optimizer, cho.lr) == ("adam", 1e-3)
    # A preset's training settings do not change the default ones.
    assert BinarySparseCoderConfig().train_config().optimizer == TrainConfig.optimizer


def test_help_of_the_command_line_describes_each_binary_activation(
    capsys: pytest.CaptureFixture[str],
):
    parser = ArgumentParser()
    parser.add_arguments(CommandLineCoderConfig, dest="sae")
    parser.print_help()
    described = " ".join(capsys.readouterr().out.split())
    for activation in SELECTION_OF_ACTIVATION:
        assert f"{activation}: " in described
