"""What a run learns from: the images of its method's streams, under their prompts, and those that are drawn anew."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from styledrop_jax.errors import UserError
from styledrop_jax.guidance import Follow
from styledrop_jax.io import captions, image_files
from styledrop_jax.methods.base import Method, Stream, spread
from styledrop_jax.methods.side_by_side import cut_mix
from styledrop_jax.pipelines.base import Pipeline, SampleSettings
from styledrop_jax.sampling.attention_control import aligned_tokens
from styledrop_jax.stages import class_images
from styledrop_jax.stages.objective import Stream as Batch

_CROPS = 8  # cached variants of each image when crops are random


class Example(NamedTuple):
    """One image that teaches something: uint8 [h, w, 3] of any size, its stream and its words."""

    stream: Stream
    image: np.ndarray
    content: str
    descriptor: str


def section(config: Mapping[str, Any], stream: Stream) -> Mapping[str, Any]:
    """The part of the config that names a stream's images; UserError if there is none."""
    found = functools.reduce(
        lambda part, name: part.get(name) or {}, stream.section.split("."), config
    )
    if not found:
        raise UserError(
            f"config.{stream.section}: missing; method {config['method']} has such a stream"
        )
    return found


def read(method: Method, config: Mapping[str, Any]) -> list[tuple[Stream, captions.Reference]]:
    """The user's images of every stream that teaches something; UserError if a stream has none, or they do not read."""
    found = []
    for stream in spread(method.streams, config):
        if not stream.generated:
            given = {"content": "", "descriptor": ""} | dict(section(config, stream))
            needs = [name for name in ("content", "descriptor") if f"{{{name}}}" in stream.prompt]
            words = (given[name] for name in ("image", "content", "descriptor"))
            images = captions.read_references(*words, needs=needs, field=f"config.{stream.section}")
            found += [(stream, image) for image in images]
    return found


def taught(
    method: Method,
    config: Mapping[str, Any],
    examples: Sequence[Example],
    resolution: int,
    *,
    random_crop: bool,
) -> list[Batch]:
    """The streams of the examples, each image once, or in several crops."""
    crops: list[Any] = [None]
    if random_crop:
        rng = np.random.default_rng(config["seed"])
        crops = [(*rng.random(2), rng.uniform(0.8, 1.0)) for _ in range(_CROPS)]
    batches = []
    for stream in dict.fromkeys(example.stream for example in examples):
        mine = [example for example in examples if example.stream == stream]
        images = [
            image_files.to_square(e.image, resolution, crop=crop) for e in mine for crop in crops
        ]
        prompts = [
            method.caption(stream, config, content=e.content, descriptor=e.descriptor)
            for e in mine
            for _ in crops
        ]
        batches.append(Batch(np.stack(images), prompts))
    return batches


def mixed(
    method: Method, config: Mapping[str, Any], examples: Sequence[Example], model: Pipeline
) -> list[Batch]:
    """The stream `method.mixed`, if there is one; UserError if no two contents differ, or attention cannot be seen."""
    if method.mixed is None:
        return []
    given = section(config, method.mixed)
    pairs = [(a, b) for a, b in itertools.permutations(examples, 2) if a.content != b.content]
    if not pairs:
        raise UserError(
            f"config.{examples[0].stream.section}: all images show {examples[0].content!r}; "
            "expected two subjects, named by content"
        )
    images = [
        cut_mix(*(image_files.to_square(side.image, model.resolution) for side in pair))
        for pair in pairs
    ]
    prompts = [
        method.caption(method.mixed, config, left=a.content, right=b.content) for a, b in pairs
    ]
    apart = None
    if given["unmix"]:
        _check_seen(
            f"config.{method.mixed.section}.unmix: found {given['unmix']}, expected 0",
            config,
            model,
        )
        tokens = [
            _apart(model, text, a.content, b.content)
            for text, (a, b) in zip(prompts, pairs, strict=True)
        ]
        apart = given["unmix"] * np.stack(tokens)
    return [Batch(np.stack(images), prompts, given["weight"], apart)]


def _check_seen(wrong: str, config: Mapping[str, Any], model: Pipeline) -> None:
    if not model.controllable:
        raise UserError(
            f"{wrong}: the attention of {model.name!r}, which is no Stable Diffusion, cannot be seen"
        )
    if any(config[key]["train"]["remat"] for key in config if key.startswith("round_")):
        raise UserError(f"{wrong} beside train.remat, which hides the attention")


def _apart(model: Pipeline, prompt: str, left: str, right: str) -> np.ndarray:
    """float32 [t, 2]: an equal share for each token of the right's words in the left half, and the reverse.

    Tokens that both have, such as an article, belong nowhere.
    """

    def count(text: str) -> int:
        return int(np.argmax(model.text_ids([text])[0] == model.tokenizer.eos_token_id)) - 1

    def tokens(start: int, words: str) -> slice:
        first = 1 + count(prompt[:start])
        return slice(first, first + count(words))

    left, right = (" ".join(words.split()) for words in (left, right))  # as in the prompt
    ids = model.text_ids([prompt])[0]
    one, other = tokens(prompt.index(left), left), tokens(prompt.rindex(right), right)
    apart = np.zeros((len(ids), 2), np.float32)
    apart[other, 0], apart[one, 1] = ~np.isin(ids[other], ids[one]), ~np.isin(ids[one], ids[other])
    return apart / max(apart.sum(), 1)


def priors(
    method: Method,
    config: Mapping[str, Any],
    model: Pipeline,
    *,
    settings: SampleSettings,
    batch_size: int,
) -> list[Batch]:
    """The streams that keep what the model knows, the same in every round: given, or drawn by the frozen model."""
    batches = []
    for stream in spread(method.streams, config):
        if not stream.generated:
            continue
        given, prompt = section(config, stream), method.caption(stream, config)
        if given["image"]:
            read = captions.read_references(
                given["image"], "", "", needs=(), field=f"config.{stream.section}"
            )
            images = [reference.image for reference in read]
        elif given["generate"]:
            drawn = method.caption(Stream(section=stream.section, prompt=stream.generated), config)
            drawing = {"settings": settings, "batch_size": batch_size, "seed": config["seed"]}
            images = class_images.class_images(model, drawn, given["generate"], **drawing)
        else:
            raise UserError(
                f"config.{stream.section}.image: empty; expected images of {prompt!r}, a file or folder, or "
                f"config.{stream.section}.generate above 0 for the frozen model to draw them"
            )
        squares = np.stack([image_files.to_square(image, model.resolution) for image in images])
        batches.append(Batch(squares, [prompt] * len(squares), given["weight"]))
    return batches


def check_prompts(method: Method, config: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """UserError if what is taught trains under a prompt of another stream, or an identifier stands for two things."""
    method.identifiers(config)
    captions = {
        (e.stream, method.caption(e.stream, config, content=e.content, descriptor=e.descriptor))
        for e in examples
    }
    kept = [stream for stream in spread(method.streams, config) if stream.generated]
    captions |= {(stream, method.caption(stream, config)) for stream in kept}
    first: dict[str, Stream] = {}
    for stream, prompt in sorted(captions, key=lambda found: found[0].section):
        other = first.setdefault(prompt, stream)
        if other != stream and not (other.generated and stream.generated):
            raise UserError(
                f"config.{stream.section}: trains under {prompt!r}, as config.{other.section} does; "
                "expected an identifier of its own"
            )


def follow(
    method: Method, config: Mapping[str, Any], model: Pipeline, image: np.ndarray, drawn: str
) -> Follow:
    """A picture uint8 [r, r, 3] of the stream that is drawn anew, as drawings under the prompt `drawn` follow it.

    Raises:
        UserError: the pipeline has no control of its attention, or the two prompts do not align token for token.
    """
    stream = method.redraws
    given, field = section(config, stream), f"config.{stream.section}.control"
    share = given["control"]
    if not model.controllable:
        raise UserError(
            f"{field}: found {share}, expected 0: control of the attention needs Stable Diffusion, and config.base is "
            f"{model.name!r}, which draws from words alone"
        )
    prompt, end = method.caption(stream, config), model.tokenizer.eos_token_id
    padded = model.text_ids([prompt, drawn, method.kept(config)])
    source, result, part = (ids[: np.argmax(ids == end) + 1] for ids in padded)
    tokens = aligned_tokens(source, result, part[1:-1])
    if tokens is None:
        raise UserError(
            f"{field}: the prompts {prompt!r} ({len(source) - 2} tokens) and {drawn!r} ({len(result) - 2} tokens) do "
            f"not align; expected as many, at most {padded.shape[1] - 2}, with the words {method.kept(config)!r} at "
            "one place of both: the same repeats in both, or shorter identifiers"
        )
    tokens = np.pad(tokens, (0, padded.shape[1] - len(tokens)))
    return Follow(model.encode_images(image[None]), prompt, tokens, share, given["strength"])
