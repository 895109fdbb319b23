"""What single files say they were trained to predict, and what is said of contradictions."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from styledrop_jax.errors import UserError
from styledrop_jax.io import prediction_type

EPSILON = "epsilon"
V = "v_prediction"
LDM = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n"
YAML_V = LDM + '    parameterization: "v"\n'
XL = (
    "model:\n  target: sgm.models.diffusion.DiffusionEngine\n  params:\n    denoiser_config:\n"
    "      params:\n        scaling_config:\n          target: sgm.modules.denoiser_scaling."
)
YAML_EPSILON = LDM + "    linear_start: 0.00085\n"  # as the released files of 1.x and 2.x base
EVERY_VERSION = pytest.mark.parametrize("version", [1, 2])


def _read(folder, version, metadata=None, tensors=(), yaml=None) -> prediction_type.Marks:
    file = folder / "tuned.safetensors"
    scalars = {name: np.zeros((), np.float32) for name in tensors}
    save_file({"model.x": np.zeros(2, np.float32), **scalars}, file, metadata=metadata)
    if yaml is not None:
        file.with_suffix(".yaml").write_text(yaml)
    return prediction_type.read(file, version=version)


@EVERY_VERSION
@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({}, (None, None)),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, (EPSILON, None)),
        ({"metadata": {"modelspec.prediction_type": "v"}}, (V, None)),
        ({"metadata": {"modelspec.prediction_type": "v_prediction"}}, (V, None)),
        ({"metadata": {"ss_v_parameterization": "True"}}, (V, None)),
        ({"metadata": {"ss_v_parameterization": "False"}}, (EPSILON, None)),
        ({"metadata": {"ss_base_model_version": "sd_v2_v"}}, (V, None)),
        ({"metadata": {"ss_base_model_version": "sd_v1"}}, (None, None)),
        ({"metadata": {"ss_zero_terminal_snr": "None"}}, (None, None)),
        ({"metadata": {"ss_zero_terminal_snr": "False"}}, (None, False)),
        ({"tensors": ("v_pred",)}, (V, None)),
        ({"tensors": ("v_pred", "ztsnr")}, (V, True)),
        ({"tensors": ("v_pred",), "metadata": {"ss_zero_terminal_snr": "True"}}, (V, True)),
        ({"yaml": YAML_V}, (V, None)),
        ({"yaml": YAML_EPSILON}, (EPSILON, None)),
        ({"yaml": XL + "VScaling\n"}, (V, None)),
        ({"yaml": XL + "EpsScaling\n"}, (EPSILON, None)),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v2-768-v"}}, (V, None)),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v2-512"}}, (EPSILON, None)),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v1"}}, (None, None)),
        ({"yaml": "another: tool\n"}, (None, None)),
        ({"yaml": ""}, (None, None)),
        ({"yaml": YAML_V, "tensors": ("ztsnr",)}, (V, True)),
    ],
)
def test_each_mark_is_read(version, marks, expected, tmp_path):
    assert _read(tmp_path, version, **marks).agreed() == expected


@EVERY_VERSION
def test_the_version_of_the_metadata_is_the_tensors(version, tmp_path):
    said = {1: "False", 2: "True"}
    _read(tmp_path, version, {"ss_v2": said[version]})
    with pytest.raises(UserError, match=rf"is {version} in its tensors and {3 - version} in ss_v2"):
        _read(tmp_path, version, {"ss_v2": said[3 - version]})


@EVERY_VERSION
@pytest.mark.parametrize(
    ("marks", "words"),
    [
        (
            {"metadata": {"modelspec.prediction_type": "epsilon"}, "tensors": ("v_pred",)},
            r"is epsilon in modelspec\.prediction_type of its metadata and v_prediction in its "
            r"tensor v_pred; expected the same",
        ),
        (
            {"metadata": {"ss_v_parameterization": "False"}, "yaml": YAML_V},
            r"epsilon in ss_v_parameterization of its metadata and v_prediction in tuned\.yaml",
        ),
        (
            {"tensors": ("v_pred",), "yaml": YAML_EPSILON},
            r"v_prediction in its tensor v_pred and epsilon in tuned\.yaml",
        ),
        (
            {"tensors": ("v_pred", "ztsnr"), "metadata": {"ss_zero_terminal_snr": "False"}},
            r"zero terminal SNR is False in ss_zero_terminal_snr of its metadata and True in its "
            r"tensor ztsnr",
        ),
        (
            {"tensors": ("ztsnr",), "yaml": YAML_EPSILON},
            "zero terminal SNR is True in its tensor ztsnr, and the prediction type is epsilon",
        ),
        (
            {"metadata": {"ss_zero_terminal_snr": "True"}},
            "True in ss_zero_terminal_snr of its metadata, and the prediction type is not said",
        ),
    ],
)
def test_contradictions_name_both(version, marks, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        _read(tmp_path, version, **marks).agreed()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        (
            {"metadata": {"modelspec.prediction_type": "sample"}},
            r"modelspec\.prediction_type is 'sample', expected epsilon or v",
        ),
        ({"yaml": LDM + "    parameterization: x0\n"}, "tuned.yaml: parameterization is 'x0'"),
        ({"yaml": LDM + "    parameterization: [v]\n"}, r"parameterization is \['v'\]"),
        ({"yaml": XL + "EDMScaling\n"}, "tuned.yaml: the target of its scaling_config is 'sgm"),
        ({"tensors": ("edm_mean",)}, r"edm_mean says that it trained with EDM's noise"),
        ({"tensors": ("edm_vpred.sigma_max",)}, r"edm_vpred\.sigma_max says that it trained"),
        ({"yaml": "model: ["}, "tuned.yaml: not readable YAML"),
        ({"yaml": "a: !!python/object/apply:os.getcwd []"}, "tuned.yaml: not readable YAML"),
    ],
)
def test_marks_that_are_not_understood_are_named(marks, words, tmp_path):
    with pytest.raises(UserError, match=words):
        _read(tmp_path, 1, **marks)
