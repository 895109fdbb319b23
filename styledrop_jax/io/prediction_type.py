"""What a Stable Diffusion in a single file was trained to predict, as far as it says.

The numbers of such a file do not tell: a model of v that is taken for one of the noise samples
noise. Each tool has a mark of its own, in the file or beside it. Marks that contradict each other
are an error, since one of them is wrong.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from styledrop_jax.errors import UserError, shown
from styledrop_jax.io.pretrained import open_safetensors

_Value = TypeVar("_Value", str, bool, int)
_EPSILON = "epsilon"
_V = "v_prediction"
_MODELSPEC = "modelspec.prediction_type"
_METADATA = {  # key in a safetensors file's metadata → what its values say, in lower case
    _MODELSPEC: {"epsilon": _EPSILON, "eps": _EPSILON, "v": _V, "v_prediction": _V},
    "ss_v_parameterization": {"true": _V, "false": _EPSILON},
    "ss_base_model_version": {"sd_v1_v": _V, "sd_v2_v": _V},
}
_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES = (
    (r"stable-diffusion-v2-768-v\b", _V),
    (r"stable-diffusion-v2-(?:512|inpainting)\b", _EPSILON),
)
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_BOOLEANS = {"true": True, "false": False}
_VERSIONS = {"true": 2, "false": 1}
_PARAMETERIZATIONS = {"eps": _EPSILON, "v": _V}
_SCALINGS = {"EpsScaling": _EPSILON, "VScaling": _V}  # of the code of XL


@dataclasses.dataclass(frozen=True)
class Marks:
    """What is said of a single file, and where: {where: what}.

    Attributes:
        file: the file.
        prediction: "epsilon" or "v_prediction".
        zero_snr: whether its noise schedule ends with nothing of the data left.
    """

    file: Path
    prediction: dict[str, str] = dataclasses.field(default_factory=dict)
    zero_snr: dict[str, bool] = dataclasses.field(default_factory=dict)

    def agreed(self) -> tuple[str | None, bool | None]:
        """The prediction type and whether the SNR ends at zero; None for what nothing says.

        Raises:
            UserError: two marks contradict each other, or a model of the noise ends at zero.
        """
        prediction = _agreed(self.file, "prediction type", self.prediction)
        zero_snr = _agreed(self.file, "zero terminal SNR", self.zero_snr)
        if zero_snr and prediction != _V:
            by = next(iter(self.zero_snr))
            found = prediction or "not said"
            raise UserError(
                f"{self.file}: zero terminal SNR is True in {by}, and the prediction type is "
                f"{found}; expected {_V}, the only one that such a model can have"
            )
        return prediction, zero_snr


def read(file: Path, *, version: int | str) -> Marks:
    """The marks of a single file: its metadata, its tensors' names, and `NAME.yaml` beside it.

    Args:
        file: a safetensors file.
        version: which Stable Diffusion its tensors are of: 1, 2 or "xl".

    Raises:
        UserError: a mark has an unknown value, or says another version.
    """
    with open_safetensors(file) as handle:
        metadata = handle.metadata() or {}
        names = set(handle.keys())
    for name in _EDM:
        if name in names:
            raise UserError(
                f"{file}: its tensor {name} says that it trained with EDM's noise, as Playground "
                "2.5 and CosXL did; expected a model with betas, such as Stable Diffusion XL"
            )
    marks = Marks(file)
    for key, values in _METADATA.items():
        value = metadata.get(key)
        if value is None:
            continue
        if value.lower() in values:
            marks.prediction[f"{key} of its metadata"] = values[value.lower()]
        elif key == _MODELSPEC:
            raise UserError(f"{file}: {key} is {shown(value)}, expected epsilon or v")
    for pattern, prediction in _ARCHITECTURES:
        if re.match(pattern, metadata.get(_ARCHITECTURE, "")):
            marks.prediction[f"{_ARCHITECTURE} of its metadata"] = prediction
    said = metadata.get("ss_zero_terminal_snr", "").lower()
    if said in _BOOLEANS:
        marks.zero_snr["ss_zero_terminal_snr of its metadata"] = _BOOLEANS[said]
    if "v_pred" in names:
        marks.prediction["its tensor v_pred"] = _V
    if "ztsnr" in names:
        marks.zero_snr["its tensor ztsnr"] = True
    said = metadata.get("ss_v2", "").lower()
    if said in _VERSIONS and version in _VERSIONS.values():
        versions = {"its tensors": version, "ss_v2 of its metadata": _VERSIONS[said]}
        _agreed(file, "Stable Diffusion version", versions)
    config = file.with_suffix(".yaml")
    if config.is_file() and (prediction := _of_yaml(config)):
        marks.prediction[config.name] = prediction
    return marks


def _agreed(file: Path, what: str, said: Mapping[str, _Value]) -> _Value | None:
    """The one value of {where: value}; None if there is none."""
    first = next(iter(said), None)
    if first is None:
        return None
    for where, value in said.items():
        if value != said[first]:
            raise UserError(
                f"{file}: its {what} is {said[first]} in {first} and {value} in {where}; "
                f"expected the same, one of them is wrong"
            )
    return said[first]


def _of_yaml(path: Path) -> str | None:
    """The prediction type of a config of the latent-diffusion code, or of XL's; None for a file of
    another kind.

    Raises:
        UserError: it is no YAML, or has a prediction type that is neither the noise nor v.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not readable YAML ({type(error).__name__})") from None
    params = _inside(config, "model", "params")
    if not isinstance(params, dict):
        return None
    if "parameterization" not in params and "denoiser_config" in params:
        return _of_scaling(path, params)
    value = params.get("parameterization", "eps")  # that code's own default
    if not isinstance(value, str) or value not in _PARAMETERIZATIONS:
        raise UserError(f"{path}: parameterization is {shown(value)}, expected 'eps' or 'v'")
    return _PARAMETERIZATIONS[value]


def _of_scaling(path: Path, params: dict[str, Any]) -> str:
    """What a config of XL's code says by the class that scales the output."""
    target = _inside(params, "denoiser_config", "params", "scaling_config", "target")
    scaling = str(target).rpartition(".")[2]
    if scaling not in _SCALINGS:
        expected = " or ".join(_SCALINGS)
        raise UserError(
            f"{path}: the target of its scaling_config is {shown(target)}, expected {expected}"
        )
    return _SCALINGS[scaling]


def _inside(value: Any, *keys: str) -> Any:
    """What lies under `keys` in nested mappings; None if there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
