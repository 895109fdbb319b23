"""The config schema: which fields there are, of which type and range; errors that say what was meant.

A config is plain data (`ml_collections.ConfigDict`); a schema mirrors it as nested dicts of `Field`. A key like
"round_*" or "component_*" stands for round_1, round_2, …; `Weights` stands for a dict of names and numbers.
"""

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from styledrop_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: `kind` is bool, int, float or str; numbers lie in [low, high], or (low, high] when `above`."""

    kind: type
    help: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()
    empty: bool = True

    @property
    def expected(self) -> str:
        """In words, what a value must be."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[
            self.kind
        ]
        if self.low > -math.inf:
            name += f" {'above' if self.above else 'of at least'} {self.low:.12g}"
        if self.high < math.inf:
            name += f"{' and' if self.low > -math.inf else ''} at most {self.high:.12g}"
        return name if self.empty else name + " that is not empty"

    def accepts(self, value: Any) -> bool:
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is str:
            in_choices = not self.choices or value in self.choices
            return isinstance(value, str) and in_choices and (self.empty or bool(value.strip()))
        if not isinstance(value, int if self.kind is int else int | float):
            return False
        return (
            math.isfinite(value)
            and self.low <= value <= self.high
            and not (self.above and value == self.low)
        )


@dataclasses.dataclass(frozen=True)
class Weights:
    """A dict of name → number; a name that is left out weighs 0, and not all may weigh 0."""

    names: tuple[str, ...]
    help: str


Schema = Mapping[str, "Field | Weights | Schema"]

KINDS = ("styledrop", "lora", "textual_inversion", "custom_diffusion", "svdiff", "full")
"""What may train, as `config.round_N.adapter.kind`."""
METHODS = (
    "styledrop",
    "dreambooth",
    "styleforge",
    "multi_styleforge",
    "style_word",
    "styo",
    "cut_mix",
)
SAMPLERS = ("ddim", "ddpm", "dpm_solver", "dpm_solver_karras", "euler")
GUIDANCE = ("two_scale", "classifier_free")

_ROUND: Schema = {
    "adapter": {
        "kind": Field(str, "what trains", choices=KINDS),
        "rank": Field(int, "width inside an adapter (styledrop, lora)", 1, 4096),
        "shared": Field(
            bool, "one generator for all layers, with a small offset per layer (styledrop)"
        ),
        "alpha": Field(float, "strength of the product is alpha / rank (lora)", 0, above=True),
        "targets": Field(str, "which layers (lora, svdiff)", choices=("attention", "all")),
        "text_encoder": Field(bool, "the text tower trains too (lora, svdiff, full)"),
        "vectors": Field(
            int, "tokens of the new word (textual_inversion, custom_diffusion)", 1, 64
        ),
        "initializer": Field(
            str, "what the new word starts as, words of at most `vectors` tokens (the same)"
        ),
        "norm": Field(
            bool, "the new word's rows keep the length of the table's (textual_inversion)"
        ),
    },
    "train": {
        "steps": Field(int, "training steps", 1),
        "learning_rate": Field(float, "Adam's learning rate", 0, 1, above=True),
        "batch_size": Field(int, "images a step", 1),
        "random_crop": Field(bool, "crop the references at random instead of from the middle"),
        "text_dropout": Field(float, "probability that a step's prompt is dropped", 0, 1),
        "checkpoint_every": Field(
            int, "steps between checkpoints, at most these are lost by a kill", 1
        ),
        "min_snr_gamma": Field(
            float, "bound of the signal-to-noise weights, usually 5; 0 for none (diffusion)", 0
        ),
        "noise_offset": Field(
            float, "deviation of a constant added to the noise of a channel (diffusion)", 0, 1
        ),
        "ema_decay": Field(
            float,
            "decay of the average over the steps that is kept, such as 0.99; 0: the last step's",
            0,
            0.99999,
        ),
        "accumulate": Field(
            int, "parts that a step's images are computed in: less memory, the same result", 1
        ),
        "remat": Field(
            bool, "compute activations anew in the backward pass: less memory, more time"
        ),
    },
    "sample": {
        "images_per_prompt": Field(int, "images drawn for each prompt", 1),
        "batch_size": Field(int, "images drawn at once: more is faster and takes more memory", 1),
        "steps": Field(int, "decoding steps", 1, 1000),
        "guidance": Field(
            str, "StyleDrop's Eq. 4, or the tuned model's by lambda_b alone", choices=GUIDANCE
        ),
        "temperature": Field(float, "choice temperature, annealed to 0 (Muse)", 0),
        "sampler": Field(str, "how noise is removed (diffusion)", choices=SAMPLERS),
        "guidance_rescale": Field(
            float, "share by which the guided contrast is pulled back (diffusion)", 0, 1
        ),
        "lambda_a": Field(float, "guidance towards the style", 0),
        "lambda_b": Field(float, "guidance towards the text", 0),
        "lambda_ramp": Field(bool, "let the guidance rise linearly over the steps"),
        "negative_prompt": Field(str, "what not to draw; empty for nothing"),
    },
    "select": {
        "scorers": Weights(
            ("clip_text", "clip_style", "random"), "weight of each scorer in the sum"
        ),
        "by": Field(
            str,
            "how images are chosen for the next round",
            choices=("prompt", "top_k", "threshold", "human"),
        ),
        "k": Field(int, "images chosen per prompt (by prompt) or in all (by top_k)", 1),
        "threshold": Field(float, "lowest score that is chosen (by threshold)"),
    },
}

_IMAGES: Schema = {
    "image": Field(str, "images of this part: a file, folder, JSONL or bundled:NAME")
}
_IDENTIFIER = Field(str, "the word that stands for what is learnt")
_PRIOR: Schema = {
    "image": Field(
        str,
        "images that keep what the model knows, a file or folder; empty lets the frozen model draw them",
    ),
    "weight": Field(float, "of the loss of these images beside that of what is taught", 0),
    "generate": Field(
        int, "images that the frozen model draws where none are given; 0: they must be given", 0
    ),
}
_CONTRASTED: Schema = _IMAGES | {
    "style": Field(str, "the word that stands for its style"),
    "content": Field(str, "the word that stands for what it shows"),
}
_SECTIONS: Mapping[str, Schema] = {
    "reference": {
        "image": Field(
            str, "image file, folder, JSONL of {image, content, descriptor}, or bundled:NAME"
        ),
        "content": Field(str, 'what it shows, "a house"'),
        "descriptor": Field(str, 'how it is drawn, "in watercolor painting style"'),
    },
    "prior": _PRIOR,
    "aux": _PRIOR,
    "component_*": _IMAGES | {"identifier": _IDENTIFIER, "aux": _PRIOR},
    "source": _CONTRASTED
    | {
        "control": Field(
            float,
            "share of the steps that take over its cross-attention; 0: drawn by words alone",
            0,
            1,
        ),
        "strength": Field(
            float, "how much of it is noise when it is drawn anew, to 1", 0, 1, above=True
        ),
    },
    "target": _CONTRASTED,
    "contrast": {
        "negator": Field(
            str, "the word between what an image has and has not; empty leaves out the latter"
        ),
        "style_repeats": Field(int, "how often the pair of style identifiers is said", 1),
        "content_repeats": Field(int, "how often the pair of content identifiers is said", 1),
        "repeat_training": Field(bool, "say them so often in the prompts of training"),
        "repeat_drawing": Field(bool, "say them so often in the prompts that are drawn"),
    },
    "mix": {
        "weight": Field(
            float, "of the loss of two subjects side by side beside that of each alone", 0
        ),
        "unmix": Field(
            float,
            "of the attention of a subject's words to the other's half, in that (diffusion)",
            0,
        ),
    },
}
_PERSONALIZE: Schema = {
    "base": Field(str, "base model: a name or a local diffusers folder", empty=False),
    "clip": Field(
        str, "CLIP that scores the drawings: a name or a local transformers folder", empty=False
    ),
    "method": Field(str, "which images train under which prompts", choices=METHODS),
    "dtype": Field(str, "precision of the computation", choices=("float32", "bfloat16")),
    "seed": Field(int, "the one source of randomness", 0, 2**31 - 1),
    "words": {
        "identifier": _IDENTIFIER,
        "noun": Field(str, "the class of a subject, such as dog"),
    },
    "prompts": Field(str, "text file of contents to draw, one a line; empty for the built-in pool"),
    "truth": Field(
        str, "folder of true drawings, CONTENT.png, to compare with in the report; empty for none"
    ),
    "rounds": Field(
        int,
        "rounds of train, sample, score, select; those beyond the last round_N reuse it",
        1,
        100,
    ),
    "round_*": _ROUND,
}


def personalize_schema(config: ConfigDict) -> Schema:
    """The schema of a config for `styledrop personalize`: common fields, and the sections of streams that it has."""
    found = {_wildcard(key) for key in config}
    return _PERSONALIZE | {name: section for name, section in _SECTIONS.items() if name in found}


_PRETRAIN: Schema = {
    "task": Field(str, "what is trained", choices=("vq", "clip", "muse", "vae", "unet")),
    "corpus": Field(str, "folder that launch/fetch_corpus.sh made", empty=False),
    "vocabulary": Field(str, "which concepts are drawn", choices=("starter", "core", "full")),
    "seed": Field(int, "the one source of randomness", 0, 2**31 - 1),
    "width": Field(
        int,
        "channels: of transformers, in 32s; at full resolution of vq, vae in 4s, of unet in 16s",
        4,
    ),
    "batch_size": Field(int, "examples a step", 1),
    "steps": Field(int, "training steps", 1),
    "optimizer": Field(
        str, "muon: Muon for matrices and convolutions, Adam for the rest", choices=("adam", "muon")
    ),
    "learning_rate": Field(float, "peak of the cosine schedule", 0, 1, above=True),
    "warmup": Field(int, "steps of linear warm-up", 0),
    "weight_decay": Field(float, "AdamW's decoupled decay of matrices", 0),
    "b2": Field(float, "Adam's second-moment decay", 0, 1),
    "steps_per_call": Field(int, "steps per dispatch: more on a GPU", 1),
    "precision": Field(
        str,
        "of products; bfloat16 sums in float32 and is faster on matrix units",
        choices=("float32", "bfloat16"),
    ),
    "checkpoint_every": Field(int, "steps between checkpoints and pictures", 1),
}
_ON_PACK: Schema = {
    "clip": Field(
        str, "the exported CLIP, or a pipeline whose text tower to use: a folder", empty=False
    ),
    "pack": Field(int, "distinct examples to encode and train on", 1),
    "text_dropout": Field(float, "probability that a caption is dropped", 0, 1),
    "trained": Field(
        str, "regular expression: the parameters that train, by their names; empty is all"
    ),
}
_TASKS: Mapping[str, Schema] = {
    "vq": {
        "revive_every": Field(int, "steps between moves of unused codes", 1),
        "init": Field(
            str,
            "an exported vqvae folder whose decoder to train on, its tokens kept; empty starts anew",
        ),
    },
    "clip": {
        "vocab_size": Field(int, "tokens of the text vocabulary", 514),
        "max_length": Field(int, "tokens of a caption", 8),
        "text_layers": Field(int, "of the text tower", 1),
        "vision_layers": Field(int, "of the vision tower", 1),
        "seen": Field(
            float, "share of an image's patches that a step looks at: less is faster", 0.05, 1
        ),
        "init": Field(
            str,
            "an exported clip folder whose vision to train on, its text tower kept; empty starts anew",
        ),
    },
    "muse": _ON_PACK
    | {
        "codec": Field(str, "the exported tokenizer, a vqvae folder", empty=False),
        "layers": Field(int, "of the transformer", 1),
        "init": Field(str, "an exported muse folder to go on from; empty starts anew"),
    },
    "vae": {
        "kl_weight": Field(float, "of the divergence from a unit Gaussian", 0),
        "init": Field(
            str, "an exported vqvae folder whose blocks to start from; empty starts anew"
        ),
    },
    "unet": _ON_PACK
    | {
        "codec": Field(str, "the exported autoencoder, a vae folder", empty=False),
        "init": Field(str, "an exported unet folder to go on from; empty starts anew"),
        "min_snr_gamma": Field(
            float, "gamma of the Min-SNR weighting; 0 weights all timesteps the same", 0
        ),
    },
}


def pretrain_schema(config: ConfigDict) -> Schema:
    """The schema of configs/pretrain_*.py: common fields and those of `config.task`."""
    return _PRETRAIN | _TASKS.get(config.get("task", ""), {})


def parse(
    argv: Sequence[str],
    *,
    schema: Schema | Callable[[ConfigDict], Schema] = personalize_schema,
    default: str | None = None,
) -> tuple[ConfigDict, list[str]]:
    """Reads `--config FILE[:PRESET]` and the `--config.FIELD VALUE` overrides from a command line.

    Args:
        argv: arguments without the program's name.
        schema: what the config must look like, or a function from the config to that.
        default: the file when `--config` is not given; None makes it required.

    Returns:
        The locked, valid config, and the arguments that are not about it, in their order.

    Raises:
        UserError: no such file, preset or field, or a value of the wrong type or range; all fields at once.
    """
    file, others = _split_file(argv)
    if (file or default) is None:
        raise UserError("--config: missing; expected a config file such as configs/styledrop.py")
    file = file or default
    path = Path(file.split(":", 1)[0])
    if not path.is_file():
        names = [str(p) for p in path.parent.glob("*.py")]
        raise UserError(f"--config: no such file {str(path)!r}{did_you_mean(str(path), names)}")
    plain, _ = _absl([f"--config={file}"])
    _check_overrides(others, plain)
    config, rest = _absl([f"--config={file}", *others])
    return validate(config, schema=schema(config) if callable(schema) else schema), rest


def validate(config: ConfigDict, *, schema: Schema) -> ConfigDict:
    """Checks every field of `config` and locks it.

    Raises:
        UserError: unknown or missing fields, values of a wrong type or range: one line with all of them.
    """
    problems = list(_problems(config, schema, ""))
    if problems:
        raise UserError(" | ".join(problems))
    return config.lock()


def round_config(config: ConfigDict, number: int) -> ConfigDict:
    """The settings of round `number` (from 1): `round_<number>`, or the last one that the config defines."""
    last = max(int(key.removeprefix("round_")) for key in config if re.fullmatch(r"round_\d+", key))
    return config[f"round_{min(number, last)}"]


def describe(config: ConfigDict, schema: Schema) -> list[str]:
    """One line for each field of `config`, for `--help`: "seed 0: the one source of randomness (a whole number …)".

    A round that differs from the one before it shows what differs.
    """
    lines, before = [], None
    for key, value in config.items():
        entry = schema[_wildcard(key)]
        mine = list(_lines(value, entry, key))
        if key.startswith("round_"):
            shown = before or {}
            before = {line.removeprefix(key): line for line in mine}
            mine = [line for name, line in before.items() if name not in shown]
        lines += mine
    return lines


def _lines(value: Any, entry: Any, name: str) -> Iterator[str]:
    if _nested(entry):
        for key, inner in value.items():
            yield from _lines(inner, entry[key], f"{name}.{key}")
    elif isinstance(entry, Weights):
        for key, weight in value.items():
            yield f"{name}.{key} {weight}: {entry.help}"
    else:
        shown = str(value).lower() if isinstance(value, bool) else value if value != "" else '""'
        yield f"{name} {shown}: {entry.help} ({entry.expected})"


def _problems(config: Any, schema: Schema, prefix: str) -> Iterator[str]:
    keys = list(config)
    for many in [key for key in schema if key.endswith("_*")]:
        count = max(1, sum(_wildcard(key) == many for key in keys))
        schema = {**schema, **{f"{many[:-1]}{i}": schema[many] for i in range(1, count + 1)}}
        schema.pop(many)
    for key in keys:
        if key not in schema:
            yield f"config.{prefix}{key}: unknown field{did_you_mean(key, schema)}"
    for key, entry in schema.items():
        name = f"config.{prefix}{key}"
        if key not in config:
            yield f"{name}: missing"
        elif isinstance(entry, Field):
            if not entry.accepts(config[key]):
                close = did_you_mean(str(config[key]), entry.choices)
                yield f"{name}: found {config[key]!r}, expected {entry.expected}{close}"
        elif not isinstance(config[key], ConfigDict | dict):
            inside = ", ".join(entry if _nested(entry) else entry.names)
            yield f"{name}: found {config[key]!r}, expected the fields {inside}"
        elif _nested(entry):
            yield from _problems(config[key], entry, f"{prefix}{key}.")
        else:
            yield from _weight_problems(config[key], entry, name)


def _wildcard(key: str) -> str:
    """ "round_2" → "round_*"; others as they are."""
    return re.sub(r"_\d+$", "_*", key)


def _nested(entry: Any) -> bool:
    return not isinstance(entry, Field | Weights)


def _weight_problems(weights: Any, entry: Weights, name: str) -> Iterator[str]:
    number = Field(float, "")
    for key in weights:
        if key not in entry.names:
            yield f"{name}.{key}: unknown{did_you_mean(key, entry.names)} (one of {', '.join(entry.names)})"
        elif not number.accepts(weights[key]):
            yield f"{name}.{key}: found {weights[key]!r}, expected a number"
    if not any(number.accepts(weight) and weight != 0 for weight in weights.values()):
        yield f"{name}: every weight is 0; expected at least one of {', '.join(entry.names)} to count"


def _split_file(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes the last `--config FILE` out, and joins `--config.x true` into one word, which absl would not."""
    file, others, words = None, [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return file, [*others, word, *words]
        if re.fullmatch(r"--?config", word):
            if not words or words[0].startswith("--"):
                raise UserError(
                    "--config: no value; expected a config file such as configs/styledrop.py"
                )
            file = words.pop(0)
        elif match := re.fullmatch(r"--?config=(.*)", word, re.DOTALL):
            file = match[1]
        elif (
            re.fullmatch(r"--?config\.[^=]+", word)
            and words
            and words[0].lower() in ("true", "false")
        ):
            others.append(f"{word}={words.pop(0)}")
        else:
            others.append(word)
    return file, others


def _absl(argv: list[str]) -> tuple[ConfigDict, list[str]]:
    """Loads the file and applies the overrides by config_flags; returns the config and the unknown arguments."""
    argv = ["styledrop", *argv]
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # go on after a word that is not a flag
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    with _one_line(values):
        rest = values(argv, known_only=True)
        return values.config, rest[1:]


@contextlib.contextmanager
def _one_line(values: flags.FlagValues) -> Iterator[None]:
    try:
        yield
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --(config\.[^=]+)=(.*?): ", str(error), re.DOTALL)
        if not match:
            raise UserError(
                f"--config: the config file failed: {str(error).strip().splitlines()[-1]}"
            ) from error
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        expected = kinds.get(type(values[match[1]].default), "a dict {'name': number}")
        raise UserError(f"{match[1]}: found {match[2]!r}, expected {expected}") from error
    except flags.Error as error:
        raise UserError(f"--config: {' '.join(str(error).split())}") from error


def _check_overrides(argv: Sequence[str], config: ConfigDict) -> None:
    """Every `--config.FIELD` must exist: checked before config_flags, which answers with a traceback."""
    fields = _field_names(config)
    problems = []
    for word in argv:
        if word == "--":
            break
        match = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if match and match[1] not in fields:
            problems.append(f"config.{match[1]}: unknown field{_closest(match[1], fields)}")
    if problems:
        raise UserError(" | ".join(problems))


def _closest(name: str, fields: Sequence[str]) -> str:
    """The field whose last word is most like the one given, wherever it lives; then the whole name counts."""

    def likeness(field: str) -> tuple[float, float]:
        pairs = (name.rpartition(".")[2], field.rpartition(".")[2]), (name, field)
        return tuple(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(fields, key=likeness)
    return f"; did you mean 'config.{best}'?" if max(likeness(best)) >= 0.6 else ""


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, ConfigDict):
            names += _field_names(value, f"{prefix}{key}.")
    return names
