"""Images of a class, made by the frozen model to keep what it knew (DreamBooth's prior, 2208.12242
section 3.2).

They are kept between runs, by everything that they depend on, and topped up when a run asks for
more.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from styledrop_jax import cache, guidance, hosts, log
from styledrop_jax.io import image_files
from styledrop_jax.methods.base import Example, Stream
from styledrop_jax.models.reading import PLAIN
from styledrop_jax.pipelines.base import Pipeline, SampleSettings


def filled(
    stream: Stream, base: Pipeline, settings: SampleSettings, *, dtype: str, seed: int
) -> Stream:
    """The stream with the images of the frozen model's that it lacks."""
    if stream.generated is None:
        return stream
    asked, count = stream.generated
    prompt = stream.caption("", "")
    examples = list(stream.examples)
    if examples:
        log.say(f"config.{stream.section}: {len(examples)} images given, {count} more are made")
    paths = _generated(base, asked, count, settings, dtype=dtype, seed=seed)
    for image in hosts.shared(lambda: [image_files.read_image(path) for path in paths]):
        examples.append(Example(image=image, prompt=prompt))
    return dataclasses.replace(stream, examples=examples)


def _generated(
    base: Pipeline, prompt: str, count: int, settings: SampleSettings, *, dtype: str, seed: int
) -> list[Path]:
    """`count` image files of `prompt`, the i-th with seed `seed` + i, from the cache or made
    now.
    """
    depends = [base.base_hash, prompt, dataclasses.asdict(settings), dtype, seed]
    if base.reading != PLAIN:
        depends.append(dataclasses.asdict(base.reading))
    name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
    folder = cache.folder() / "class_images" / name
    paths = [folder / f"{i:05d}.png" for i in range(count)]
    if hosts.shared(lambda: all(path.is_file() for path in paths)):
        log.say(f"images of {prompt!r} by the frozen model: {count} made before, in {folder}")
        return paths
    model = guidance.bare(base)
    guidance.generate_files(
        f"sampling {prompt!r} with the frozen model",
        paths,
        [prompt] * count,
        range(seed, seed + count),
        lambda texts: guidance.classifier_free(model, texts, settings),
        base=base,
        settings=settings,
    )
    return paths
