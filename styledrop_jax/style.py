"""What a run learnt, ready to use: sample, mix, edit, stylize, export."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from PIL import Image

from styledrop_jax import __version__, base_model, guidance, pictures, results, settings, trainable
from styledrop_jax.adapters.base import Trainable
from styledrop_jax.errors import UserError, check_words, did_you_mean, shown
from styledrop_jax.interchange.export import EXPORTS
from styledrop_jax.interchange.trained import Trained
from styledrop_jax.io import image_files, regions
from styledrop_jax.io.files import digest
from styledrop_jax.io.paths import expanded
from styledrop_jax.io.run_folder import Run
from styledrop_jax.methods.base import Method
from styledrop_jax.pictures import Picture
from styledrop_jax.pipelines import inpainting
from styledrop_jax.pipelines.base import Edit, Pipeline, SampleSettings
from styledrop_jax.registry import METHODS
from styledrop_jax.results import Made, Request
from styledrop_jax.spec import RunSpec, from_config
from styledrop_jax.stages.begin import warn_of_unknown
from styledrop_jax.stages.kept import adapter_file, chosen_round
from styledrop_jax.training import mesh

MOST_IMAGES = 10_000  # of one prompt, in one call
STRENGTHS = (0.5, 0.7)
"""Of whole images by default: 0.5 keeps more of the image, 0.7 is clearly in the style."""

_LOG = logging.getLogger(__name__)
_kept = functools.lru_cache(maxsize=1)(base_model.load)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Style:
    """What a round of a run learnt, on its base model.

    Attributes:
        run: its folder. number: of the round; 0 is the base model alone.
        spec: what the run was told.
        tuned: the base model with what was trained in it.
        descriptor: the words of the style, which are added to every prompt.
        content: what the reference shows. prompts: that the run sampled, for a model card.
        sampling: how the round sampled.
        adapter: the file of what was trained; None for the base model.
    """

    run: Path
    number: int
    spec: RunSpec
    tuned: guidance.Tuned
    descriptor: str
    content: str
    prompts: Sequence[str]
    sampling: SampleSettings
    adapter: Path | None

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        round: int | None = None,
        step: int | None = None,
        base: str = "",
        pipeline: Pipeline | None = None,
        keep: bool = False,
        prompt_weights: bool | None = None,
        long_prompts: bool | None = None,
    ) -> Self:
        """Loads what a run learnt.

        Args:
            run: a run folder.
            round: whose adapter; None is the best by the run's verdict, 0 the base model alone.
            step: of training, one that the round kept; None is the best of them.
            base: where the base model is now, if it has moved.
            pipeline: the base model, if it is loaded already.
            keep: whether to take the base model that was kept last, if it is the same, and to keep
                this one.
            prompt_weights: whether weights and BREAK in prompts are read as such; None is the run's
                own `config.prompt_weights`.
            long_prompts: whether prompts longer than the text tower are read whole, in chunks; None
                is the run's own `config.long_prompts`.

        Raises:
            UserError: no such run, round or step, or the base model is not the one that it was
                trained on.
        """
        opened = Run.load(run)
        references = opened.references
        if not references:
            raise UserError(
                f"{run}: holds no run of `styledrop personalize`, or one that has not begun"
            )
        spec = from_config(opened.config)
        asked = {"prompt_weights": prompt_weights, "long_prompts": long_prompts}
        spec = settings.changed(spec, asked)
        number = chosen_round(opened, spec.rounds, round)
        load = _kept if keep else base_model.load
        model = pipeline or load(
            base or spec.base,
            jnp.dtype(spec.dtype),
            weights=jnp.dtype(spec.weights_dtype),
            revision="" if base else opened.revision("base"),
            vae=spec.vae,
            loras=spec.loras,
            devices=mesh.make(mesh.fitting(spec.mesh)),
        )
        model = model.reads(spec.reading)
        path = adapter_file(opened, number, step)
        return cls(
            run=opened.workdir,
            number=number,
            spec=spec,
            tuned=guidance.load(model, path) if path else guidance.bare(model),
            descriptor=opened.found_words(number) or str(references[0].get("descriptor", "")),
            content=str(references[0].get("content", "")),
            prompts=opened.prompts,
            sampling=spec.round(number or 1).sample,
            adapter=path,
        )

    @property
    def pipeline(self) -> Pipeline:
        """The base model."""
        return self.tuned.base

    @property
    def method(self) -> Method:
        return METHODS[self.spec.method]

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        descriptor: str | None = None,
        out: str | Path | None = None,
        **sampling: Any,
    ) -> list[Image.Image]:
        """Samples prompts in the style.

        Args:
            prompts: what to sample, "a cat"; the words of the style are added.
            num: images of each.
            seed: of the first image of each; image i has seed + i.
            descriptor: words of the style in place of the run's own; "" for none.
            out: a folder to write to as well: a PNG each, grid.png, and a line each in images.jsonl
                with everything that reproduces it.
            sampling: fields of `SampleSettings` in place of the run's own, such as steps=50.

        Returns:
            num images of the first prompt, then those of the next.

        Raises:
            UserError: a prompt, number or setting that cannot be.
        """
        how = settings.changed(self.sampling, sampling)
        requests = self._requests(_listed(prompts), num, seed, descriptor)
        made = results.Output(self._origin(), how, out).keep(requests, self._maker(requests, how))
        return results.given_back(made, out, num)

    def mix(
        self,
        subject: "Style",
        prompts: str | Sequence[str],
        *,
        gamma: float = 0.6,
        num: int = 1,
        seed: int = 0,
        descriptor: str | None = None,
        out: str | Path | None = None,
        **sampling: Any,
    ) -> list[Image.Image]:
        """My object in my style: the guided outputs of two runs on one base model, mixed (StyleDrop
        2306.00983).

        Args:
            subject: the run that knows the object; load it with this one's `pipeline`.
            gamma: its share, 0 to 1.

        All else, and what is returned and raised, is that of `sample`. The style sees the prompt
        with its descriptor, the subject the prompt alone.
        """
        if not 0 <= gamma <= 1:
            raise UserError(f"gamma: found {gamma}, expected a number from 0 to 1")
        if self.adapter is None or subject.adapter is None:
            raise UserError("round: 0 is the base model; mix needs an adapter of each run")
        how = settings.changed(self.sampling, sampling)
        record = {"gamma": gamma, "subject": subject._origin()}
        requests = self._requests(_listed(prompts), num, seed, descriptor, record)
        contents = [request.prompt.content for request in requests]
        branches = guidance.mixed_branches(
            self.tuned,
            subject.tuned,
            [request.prompt.text for request in requests],
            [subject.method.say(subject.spec, content, "").text for content in contents],
            gamma=gamma,
            settings=how,
        )
        make = guidance.maker(branches, _seeds(requests), settings=how)
        made = results.Output(self._origin(), how, out).keep(requests, make)
        return results.given_back(made, out, num)

    def edit(
        self,
        image: Picture,
        prompts: str | Sequence[str],
        *,
        mask: Picture | None = None,
        strength: float | None = None,
        num: int = 1,
        seed: int = 0,
        descriptor: str | None = None,
        out: str | Path | None = None,
        **sampling: Any,
    ) -> Sequence[Image.Image]:
        """Generates the masked part of an image anew in the style, or all of it in part.

        Args:
            image: to start from.
            mask: of its size, white where to generate anew; None is everywhere.
            strength: how much is generated anew, above 0 to 1; None is all of a mask, else 0.7.

        The result has the size of the image. Outside the mask the pixels stay as they are; inside,
        along its edge, the new ones are blended into the old over a seam (`regions.seam`). The
        model works on a window around the mask (`regions.window`), or without one on the whole, at
        its own resolution; what it makes is scaled back by Lanczos.

        All else, and what is returned and raised, is that of `sample`.
        """
        amount = strength if strength is not None else STRENGTHS[-1] if mask is None else 1.0
        _check_strength(amount)
        how = settings.changed(self.sampling, sampling)
        given = pictures.array(image)
        region = pictures.region(mask, given.shape[:2])
        box = regions.window(region, self.pipeline.resolution)
        there = slice(box[1], box[3]), slice(box[0], box[2])
        inside = region[there]
        size = self.pipeline.canvas(*inside.shape)
        start = image_files.resized(given[there], size)
        blend = None if mask is None else regions.seam(inside, given.shape[:2])

        def whole(after: np.ndarray) -> np.ndarray:
            changed = Image.fromarray(given)
            anew = Image.fromarray(image_files.resized(after, inside.shape))
            changed.paste(anew, box, blend)
            return np.asarray(changed)

        record = {
            "image": pictures.named(image),
            "sha256": pictures.digest(image, given),
            "mask": pictures.named(mask),
            "mask_sha256": "" if mask is None else pictures.digest(mask, region),
            "strength": amount,
        }
        requests = self._requests(_listed(prompts), num, seed, descriptor, record, whole)
        own = pictures.repeated(self.pipeline.encode_images(start[None]), len(requests))
        anew = regions.reduced(inside, size)
        around = None
        if self.pipeline.inpaints:
            hidden = inpainting.hidden(start, anew)
            around = pictures.repeated(self.pipeline.encode_images(hidden[None]), len(requests))
        edit = Edit(own, anew, amount, around)
        output = results.Output(self._origin(), how, out)
        edited = results.Results(output.keep(requests, self._maker(requests, how, edit)))
        if out:
            before = (pictures.shown(given, self.pipeline.resolution), "before")
            captions = [request.prompt.content for request in requests]
            befores = [before] * (len(requests) // num)
            resolution = self.pipeline.resolution
            results.write_rows(Path(out), befores, edited, captions, resolution=resolution)
        return edited

    def stylize(
        self,
        images: Picture | Sequence[Picture],
        *,
        prompt: str = "",
        strength: float | Sequence[float] = STRENGTHS,
        num: int = 1,
        seed: int = 0,
        descriptor: str | None = None,
        out: str | Path | None = None,
        **sampling: Any,
    ) -> Sequence[Image.Image]:
        """Turns whole images into the style (SDEdit 2108.01073; on Muse a share of the image's own
        tokens is masked).

        Args:
            images: one or several; a folder is all of its images.
            prompt: what they show; empty takes the words of each file's name.
            strength: how much is generated anew, above 0 to 1, or several such numbers.

        All else, and what is raised, is that of `sample`.

        Returns:
            for each image, for each strength, `num` images, at its own size: scaled from what the
            model generates by Lanczos.
        """
        strengths = [strength] if isinstance(strength, int | float) else list(strength)
        for amount in strengths:
            _check_strength(amount)
        how = settings.changed(self.sampling, sampling)
        _check_seeds(num, seed)
        given = []
        for one in pictures.several(images):
            given.append(pictures.prepared(one, prompt, self.pipeline))
        output = results.Output(self._origin(), how, out)
        made: dict[tuple[int, float], list[Made]] = {}
        for same in pictures.by_size(given):
            encoded = self.pipeline.encode_images(np.stack([given[i].image for i in same]))
            for amount in strengths:
                requests = []
                for i in same:
                    record = {**given[i].record, "strength": amount}
                    contents = [given[i].content]
                    whole = functools.partial(image_files.resized, size=given[i].size)
                    requests += self._requests(contents, num, seed, descriptor, record, whole)
                start = Edit(pictures.repeated(encoded, num), None, amount)
                pairs = output.keep(requests, self._maker(requests, how, start))
                for place, i in enumerate(same):
                    made[i, amount] = pairs[place * num : (place + 1) * num]
        ordered = []
        for i in range(len(given)):
            for amount in strengths:
                ordered += made[i, amount]
        stylized = results.Results(ordered)
        if out:
            befores = [(picture.shown, picture.content) for picture in given]
            words = [f"strength {amount:g}" for amount in strengths for _ in range(num)]
            under = words * len(given)
            resolution = self.pipeline.resolution
            results.write_rows(Path(out), befores, stylized, under, resolution=resolution)
        return stylized

    def export(
        self, path: str | Path, *, format: str = "diffusers", dtype: str = "float32"
    ) -> list[Path]:
        """Writes what was learnt for another tool, below the folder `path`, and returns the files.

        Args:
            format: a name in `interchange.export.EXPORTS`: diffusers, peft, kohya, a1111, pipeline,
                single_file or styledrop.
            dtype: of the numbers in the files, "float32" or "float16".

        Raises:
            UserError: there is no such format, or none for what was trained; says which there are.
        """
        if format not in EXPORTS:
            close = did_you_mean(format, EXPORTS)
            raise UserError(
                f"format: found {shown(format)}, expected one of {', '.join(EXPORTS)}{close}"
            )
        return EXPORTS[format](self.trained(), expanded(path), dtype=dtype)

    def trained(self) -> Trained:
        """What was learnt, as it is exported; UserError for the base model alone."""
        if self.adapter is None:
            raise UserError("round: 0 is the base model; there is nothing to export")
        if self.tuned.what == Trainable():
            raise UserError(
                f"export: nothing trained; the words alone draw, in any tool: {self.descriptor!r}"
            )
        base, model = self._in_float32(self.adapter)
        return Trained(
            base=base,
            model=model,
            what=self.tuned.what,
            base_name=self.spec.base,
            info={
                "name": self.run.name,
                "prompts": list(self.prompts),
                "method": self.spec.method,
                "descriptor": self.descriptor,
                "content": self.content,
                "round": self.number,
                "version": __version__,
                "beneath": base_model.beneath(self.spec.vae, self.spec.loras),
            },
        )

    # ---------------------------------------------------------- what they share

    def _in_float32(self, adapter: Path) -> tuple[Pipeline, Pipeline]:
        """The base and the model, loaded anew if their weights are kept in fewer bits."""
        if self.pipeline.weights_dtype == jnp.float32:
            return self.pipeline, self.tuned.model
        base = base_model.load(
            self.pipeline.name,
            vae=self.spec.vae,
            loras=self.spec.loras,
            revision=self.pipeline.revision,
        )
        model, _ = trainable.load(base, adapter)
        return base, model

    def _origin(self) -> dict[str, Any]:
        """What every line of `images.jsonl` says of where the image comes from."""
        origin = {
            "run": str(self.run),
            "round": self.number,
            "base": self.pipeline.name,
            "base_hash": self.pipeline.base_hash,
        }
        for name in ("prompt_weights", "long_prompts"):
            if getattr(self.spec, name):
                origin[name] = True
        if self.adapter is not None:
            origin["adapter"] = str(self.adapter)
            origin["adapter_sha256"] = digest(self.adapter)
        return origin

    def _requests(
        self,
        contents: Sequence[str],
        num: int,
        seed: int,
        descriptor: str | None,
        record: Mapping[str, Any] | None = None,
        whole: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> list[Request]:
        """Every prompt with each of its seeds, as the run's method says it."""
        _check_seeds(num, seed)
        words = self.descriptor if descriptor is None else descriptor
        check_words(words, "descriptor")
        requests = []
        said = []
        for content in contents:
            prompt = self.method.say(self.spec, content, words)
            said.append(prompt)
            if self.adapter and prompt.remark:
                _LOG.warning(prompt.remark)
            for i in range(num):
                requests.append(
                    Request(prompt=prompt, seed=seed + i, record=record or {}, whole=whole)
                )
        warn_of_unknown(self.spec.base, said, self.spec.reading)
        return requests

    def _maker(
        self, requests: Sequence[Request], how: SampleSettings, start: Edit | None = None
    ) -> Callable[[Sequence[bool]], Iterator[np.ndarray]]:
        texts = [request.prompt.text for request in requests]
        if self.adapter is None:
            branches = guidance.classifier_free(self.tuned, texts, how)
        else:
            branches = guidance.style_branches(self.tuned, texts, how)
        return guidance.maker(branches, _seeds(requests), settings=how, edit=start)


def _seeds(requests: Sequence[Request]) -> list[int]:
    return [request.seed for request in requests]


def _listed(prompts: str | Sequence[str]) -> list[str]:
    contents = [prompts] if isinstance(prompts, str) else list(prompts)
    if not contents:
        raise UserError("prompt: missing; say what to sample")
    for content in contents:
        if not content.strip():
            raise UserError('prompt: empty; expected words like "a cat"')
        check_words(content, "prompt")
    return contents


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise UserError(f"strength: found {strength}, expected a number above 0 and at most 1")


def _check_seeds(num: int, seed: int) -> None:
    if not 1 <= num <= MOST_IMAGES:
        raise UserError(f"num: found {num}, expected 1 to {MOST_IMAGES}")
    if not 0 <= seed <= 2**32 - num:
        raise UserError(f"seed: found {seed}, expected a whole number from 0 to {2**32 - num}")
