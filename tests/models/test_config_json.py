"""Configs of models that came from someone else: every field with every kind of value."""

import dataclasses
import time
import typing

import pytest

from styledrop_jax.errors import UserError
from styledrop_jax.models import clip_config, t5, unet, uvit_config, vae, vqgan
from styledrop_jax.models.config_json import require_layers
from styledrop_jax.sampling.noise_schedule import NoiseSchedule

CONFIGS = {
    "uvit": uvit_config.Config.emoji(),
    "vqgan": vqgan.Config.emoji(),
    "unet": unet.Config.emoji(),
    "vae": vae.Config.emoji(),
    "text": clip_config.ClipConfig.emoji64().text,
    "vision": clip_config.ClipConfig.emoji64().vision,
    "t5": t5.Config(),
    "schedule": NoiseSchedule(),
}
BAD = [
    -1,
    10**9,
    10**400,
    -1.5,
    float("nan"),
    float("inf"),
    "x" * 10_000,
    "\0",
    [],
    [[]],
    [0] * 1000,
]
BAD += [{"a": 1}, [{}], ["x", None], True, False, [1e99]]


def _to_dict(config):
    values = dataclasses.asdict(config)
    if isinstance(config, NoiseSchedule):
        return {"_class_name": "DDIMScheduler", "clip_sample": False, **values}
    return config.to_dict()


def _may_be(config, field, value):
    """Whether the field's type has such a value."""
    hint = typing.get_type_hints(type(config))[field]
    numbers = -1e6 <= value <= 1e6 if isinstance(value, int | float) else False
    wanted = {bool: isinstance(value, bool), float: numbers and not isinstance(value, bool)}
    return any(wanted.get(option, False) for option in (hint, *typing.get_args(hint)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_with_a_value_that_no_model_has_is_named(name):
    config = CONFIGS[name]
    start = time.monotonic()
    for field in dataclasses.fields(config):
        if field.name == "projection":  # no field of the file
            continue
        for value in BAD:
            if _may_be(config, field.name, value):
                continue
            values = {**_to_dict(config), field.name: value}
            with pytest.raises(UserError) as caught:
                type(config).from_dict(values)
            assert len(str(caught.value)) < 300
            assert any(other in str(caught.value) for other in values), (field.name, value)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_model_writes_it_reads(name):
    config = CONFIGS[name]
    assert type(config).from_dict(_to_dict(config)) == config


@pytest.mark.parametrize("field", ["text_config", "vision_config", "text_config_dict"])
@pytest.mark.parametrize("value", [3, "x", [1]])
def test_a_tower_that_is_no_object_is_named(field, value):
    values = {**clip_config.ClipConfig.emoji64().to_dict(), field: value}
    with pytest.raises(UserError, match=r"(text|vision)_config is .*expected an object"):
        clip_config.ClipConfig.from_dict(values)


def test_more_layers_than_the_weights_hold_are_refused_before_any_is_built():
    for config in CONFIGS.values():
        for name in ("num_hidden_layers", "num_layers", "num_res_blocks", "layers_per_block"):
            if hasattr(config, name):
                require_layers(config, 2000, source="model")
                many = dataclasses.replace(config, **{name: 2**20})
                with pytest.raises(UserError, match=f"^model: {name} of its config.json is"):
                    require_layers(many, 2000, source="model")
