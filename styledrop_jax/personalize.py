"""The main job: for each round, train an adapter, draw the prompt pool with it, score the drawings, select some.

Every stage is done when its last file exists, and everything before it is a function of the config, so the same command
continues a run wherever it was stopped.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax import guidance, log, trainable, tree
from styledrop_jax.adapters.base import save_adapter
from styledrop_jax.config import round_config
from styledrop_jax.errors import UserError
from styledrop_jax.feedback import scorers, select
from styledrop_jax.io import captions, hub, image_files, sheets
from styledrop_jax.io.files import Run, guard, read_json, read_jsonl, write_bytes, write_json
from styledrop_jax.methods import identifiers, prompts
from styledrop_jax.methods.base import Method, Stream, spread
from styledrop_jax.methods.table import METHODS
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.load import load as load_pipeline
from styledrop_jax.stages import objective, report, sources
from styledrop_jax.stages.sources import Example
from styledrop_jax.training import loop, optim

_BY_TEXT = {"clip_text": 1.0}
_Given = tuple[Stream, captions.Reference]  # an image of the user's that teaches something


class Paused(Exception):
    """The run waits for a person; the message says for what."""


def personalize(config: ConfigDict, workdir: Path, *, command: str) -> Path:
    """Runs or continues a run, and returns the path of its report.

    Args:
        config: see configs/styledrop.py.
        workdir: the run folder.
        command: what the user typed, for the report.

    Raises:
        UserError: anything in the config, the images or the folder that is not right.
        Paused: a person has to choose images first.
    """
    method = METHODS[config.method]
    given = sources.read(method, config.to_dict())
    contents = (
        captions.read_prompts(config.prompts)
        if config.prompts
        else method.prompts(r.content for _, r in given)
    )
    _check_choices(config, len(contents) * max(1, len(_redrawn(method, config.to_dict(), given))))
    with Run.open(workdir, config.to_dict()) as run, log.Logger(run.workdir) as logger:
        _check_inputs(run, given, contents)
        if run.done("report.html"):
            log.say(f"{workdir}: this run is finished; see {run.path('report.html')}")
            return run.path("report.html")
        try:
            job = _Job(config, run, logger, given, contents)
        except UserError:
            if (
                not run.manifest
            ):  # it never began: the folder shall not hold the user to a mistaken config
                run.discard()
            raise
        job.draw_base()
        job.score_truth()
        examples = job.examples
        for number in range(1, config.rounds + 1):
            examples = job.round(number, examples)
        return report.write_report(run, command=command)


def _redrawn(method: Method, fields: Mapping[str, Any], given: Sequence[_Given]) -> list[int]:
    """Which of the user's images are drawn anew."""
    if method.redraws is None or not sources.section(fields, method.redraws)["control"]:
        return []
    return [i for i, (stream, _) in enumerate(given) if stream == method.redraws]


def _file(index: int) -> str:
    """Where the run folder keeps an image of the user's."""
    return f"references/{index:03d}.png"


def _check_choices(config: ConfigDict, num_prompts: int) -> None:
    """Found now, not after hours of training: more images to choose than a round draws, a batch of uneven parts."""
    for number in range(1, config.rounds + 1):
        settings = round_config(config, number)
        hyper, field = settings.train, f"config.round_{number}.train.accumulate"
        if hyper.batch_size % hyper.accumulate:
            raise UserError(
                f"{field}: found {hyper.accumulate}, expected a divisor of batch_size {hyper.batch_size}"
            )
        drawn = settings.sample.images_per_prompt
        most = {"prompt": drawn, "top_k": drawn * num_prompts}.get(settings.select.by)
        if most is not None and settings.select.k > most:
            raise UserError(
                f"config.round_{number}.select.k: found {settings.select.k}, expected at most {most}, "
                f"the images drawn{' for a prompt' * (settings.select.by == 'prompt')}"
            )


def _check_inputs(run: Run, given: Sequence[_Given], contents: Sequence[str]) -> None:
    """Images, words and prompts must be those the run began with: a file may change under an unchanged path."""
    began = run.manifest
    found = {"prompts": list(contents)}
    for stream, reference in given:
        found.setdefault(stream.section, []).append(
            [reference.sha256, reference.content, reference.descriptor]
        )
    if began:
        before = {"prompts": began["prompts"]}
        for entry in began["references"]:
            words = [entry["sha256"], entry["content"], entry["descriptor"]]
            before.setdefault(entry["section"], []).append(words)
        if changed := [f"config.{name}" for name in found if found[name] != before.get(name)]:
            raise UserError(
                f"{run.workdir}: what {' and '.join(changed)} names has changed since this run began; "
                "expected the same files, or another --workdir"
            )


class _Job:
    """One run in progress: the models, the run folder, and the stages."""

    def __init__(
        self,
        config: ConfigDict,
        run: Run,
        logger: log.Logger,
        given: Sequence[_Given],
        contents: list[str],
    ):
        self.config, self.run, self.logger = config, run, logger
        self.method: Method = METHODS[config.method]
        self.fields = config.to_dict()  # what templates are over
        self.clip_folder = hub.resolve(config.clip)
        self.model = load_pipeline(config.base, jnp.dtype(config.dtype))
        self.descriptor = given[0][1].descriptor
        self.contents = contents
        learnt = self.method.identifiers(self.fields)
        self.plans = [
            trainable.trainable(round_config(config, number).adapter, learnt)
            for number in range(1, config.rounds + 1)
        ]
        shipped = hub.SHIPPED / config.base.partition("/")[0]
        if not any(plan.words for plan in self.plans):
            for found in filter(
                None, (identifiers.remark(self.model.tokenizer, word) for word in learnt)
            ):
                log.say(f"warning: identifier {found}")
            for word in prompts.known(learnt, shipped):
                log.say(
                    f"warning: identifier {word!r} already names something to {config.base}, which must forget it"
                )
        for plan in self.plans:  # new words that do not fit are found before anything is drawn
            trainable.attach(
                self.model, dataclasses.replace(plan, denoiser=None, text=None), rngs=nnx.Rngs(0)
            )
        self.examples = [Example(stream, r.image, r.content, r.descriptor) for stream, r in given]
        sources.check_prompts(self.method, self.fields, self.examples)
        self.styles = spread(self.method.streams[:1], self.fields)
        if found := image_files.crop_remark(
            [r.path for _, r in given if image_files.is_cropped(r.image.shape, (1, 1))]
        ):
            log.say(f"warning: {found}")
        squares = [image_files.to_square(r.image, self.model.resolution) for _, r in given]
        judges = [
            square
            for (stream, _), square in zip(given, squares, strict=True)
            if stream in self.styles
        ]
        self.references = np.stack(judges).astype(np.float32) / 255
        redrawn = _redrawn(self.method, self.fields, given)
        self.redrawn = {_file(i): (Path(given[i][1].path).stem, squares[i]) for i in redrawn}
        for row in self._pool(0, 1):  # prompts that do not align are found before anything is drawn
            self._follow(row)
        sources.mixed(
            self.method, self.fields, self.examples, self.model
        )  # found now, if they cannot be
        sample = round_config(config, 1).sample
        drawing = {"settings": _settings(sample), "batch_size": sample.batch_size}
        self.priors = sources.priors(self.method, self.fields, self.model, **drawing)
        for remark in filter(
            None, (self.method.remark(self.fields, content) for content in contents)
        ):
            log.say(f"warning: {remark}")
        for text in prompts.unknown(
            [self.method.judgement(self.fields, content) for content in contents], shipped
        ):
            log.say(
                f"warning: {text!r} names nothing that {config.base} was taught; its drawings may show anything"
            )
        self._write_manifest(given, squares)

    @functools.cached_property
    def clip(self) -> ClipScorer:
        """The scoring model, loaded when first needed."""
        return ClipScorer.load(self.clip_folder)

    def _write_manifest(self, given: Sequence[_Given], squares: Sequence[np.ndarray]) -> None:
        if (
            self.run.manifest.get("base", {}).get("hash", self.model.base_hash)
            != self.model.base_hash
        ):
            raise UserError(
                f"{self.run.workdir}: the weights of config.base have changed since this run began"
            )
        others = [
            {
                "prompt": stream.prompts[0],
                "weight": stream.weight,
                "sha256": [hashlib.sha256(image.tobytes()).hexdigest() for image in stream.images],
            }
            for stream in self.priors
        ]
        if self.run.manifest.get("streams", others) != others:
            raise UserError(
                f"{self.run.workdir}: the images of a further stream have changed since this run began"
            )
        entries = []
        for i, ((stream, reference), square) in enumerate(zip(given, squares, strict=True)):
            name = _file(i)
            if not self.run.done(name):
                image_files.write_png(self.run.path(name), square)
            words = {"content": reference.content, "descriptor": reference.descriptor}
            entries.append(
                {
                    "section": stream.section,
                    "path": str(reference.path),
                    "file": name,
                    **words,
                    "sha256": reference.sha256,
                    "caption": self.method.caption(stream, self.fields, **words),
                }
            )
        libraries = {name: version(name) for name in ("styledrop_jax", "jax", "flax", "optax")}
        device = jax.devices()[0]
        self.run.update_manifest(
            {
                "references": entries,
                "streams": others,
                "prompts": self.contents,
                "base": {
                    "name": self.model.name,
                    "hash": self.model.base_hash,
                    "parameters": tree.count(nnx.state(self.model.denoiser)),
                },
                "versions": {**libraries, "python": platform.python_version()},
                "device": device.device_kind,
            }
        )

    # -------------------------------------------------------------- stages

    def draw_base(self) -> None:
        """The base model's drawings of the same prompts, from the descriptor's words alone."""
        sample = round_config(self.config, 1).sample
        branches = functools.partial(guidance.base_branches, self.model)
        self._draw("base", self._pool(0, 1), branches, _settings(sample), sample.batch_size)
        self._score("base", self._pool(0, 1), _BY_TEXT)

    def score_truth(self) -> None:
        """The same scores for the true drawings of the prompts, where the user has them: the ceiling."""
        folder = self._truth()
        if folder is None or self.run.done("truth/scores.jsonl"):
            return
        rows = []
        for row in self._pool(0, 1):
            name = f"{prompts.noun(row['content'])}.png"
            if (folder / name).is_file():
                image = image_files.to_square(
                    image_files.read_image(folder / name), self.model.resolution
                )
                image_files.write_png(self.run.path("truth", name), image)
                rows.append(row | {"file": name})
        if not rows and not self.config.truth:
            return
        if not rows:
            raise UserError(
                f"config.truth: no picture of a prompt in {folder}; expected files such as cat.png"
            )
        self._score("truth", rows, _BY_TEXT)

    def _truth(self) -> Path | None:
        """The user's folder of true drawings, or the one that comes with a bundled reference."""
        if self.config.truth:
            return Path(self.config.truth).expanduser()
        image = sources.section(self.fields, self.styles[0])["image"]
        bundled = captions.BUNDLED.parent / image.removeprefix("bundled:")
        return bundled if image.startswith("bundled:") and bundled.is_dir() else None

    def round(self, number: int, examples: Sequence[Example]) -> list[Example]:
        """Trains, draws, scores and selects; returns the selected drawings with their words."""
        stage, settings = f"round_{number}", round_config(self.config, number)
        if not self.run.done(f"{stage}/adapter.safetensors"):
            self._train(stage, number, examples, settings)
        else:
            self.logger.start(stage, step=settings.train.steps)
        style = guidance.load(self.model, self.run.path(stage, "adapter.safetensors"))
        pool = self._pool(number, settings.sample.images_per_prompt)
        branches = functools.partial(guidance.style_branches, style)
        self._draw(stage, pool, branches, _settings(settings.sample), settings.sample.batch_size)
        rows = self._score(stage, pool, settings.select.scorers)
        chosen = self._select(stage, rows, settings.select)
        self._write_grid(stage, rows, chosen)
        drawn = [
            Example(
                style,
                image_files.read_image(self.run.path(stage, row["file"])),
                row["content"],
                self.descriptor,
            )
            for style in self.styles
            for row in chosen
        ]
        return drawn + [example for example in self.examples if example.stream not in self.styles]

    def _train(
        self, stage: str, number: int, examples: Sequence[Example], settings: ConfigDict
    ) -> None:
        start = time.monotonic()
        hyper, plan = settings.train, self.plans[number - 1]
        key = jax.random.fold_in(jax.random.key(self.config.seed), number)
        model = trainable.attach(self.model, plan, rngs=nnx.Rngs(params=jax.random.fold_in(key, 0)))
        about = self.method, self.fields, examples
        taught = sources.taught(*about, self.model.resolution, random_crop=hyper.random_crop)
        learnt = taught + sources.mixed(*about, self.model) + self.priors
        data, loss = objective.prepare(model, plan, learnt, hyper)
        params = loop.fit(
            data,
            plan.filter(),
            loss,
            optim.make(hyper.learning_rate, ema_decay=hyper.ema_decay),
            objective.batches(learnt, batch_size=hyper.batch_size, seed=self.config.seed),
            steps=hyper.steps,
            key=jax.random.fold_in(key, 1),
            folder=self.run.path(stage, "checkpoints"),
            logger=self.logger,
            stage=stage,
            accumulate=hyper.accumulate,
            steps_per_call=max(n for n in range(1, 11) if hyper.checkpoint_every % n == 0),
            checkpoint_every=hyper.checkpoint_every,
            meta={"base": self.model.base_hash},
        )
        trained, whole = tree.count(params), tree.count(nnx.state(data.parts, nnx.Param))
        self.run.update_manifest(
            {
                "rounds": {
                    stage: {
                        "trainable": trained,
                        "frozen": whole - trained,
                        "images": len(examples),
                        "training_seconds": round(time.monotonic() - start, 1),
                    }
                }
            }
        )
        save_adapter(
            self.run.path(stage, "adapter.safetensors"),
            params["parts"],
            base_name=self.model.name,
            base_hash=self.model.base_hash,
            config=plan.to_dict(),
            round=number,
            extra={"descriptor": self.descriptor, "content": examples[0].content},
        )

    def _pool(self, number: int, count: int) -> list[dict[str, Any]]:
        """What is drawn in a round: `count` images of every prompt, each with its own seed; of every picture that is
        drawn anew, if there are any."""
        pictures = [(name, {"source": file}) for file, (name, _) in self.redrawn.items()] or [
            ("{subject}", {})
        ]
        return [
            {
                "prompt": p,
                "image": i,
                "file": f"samples/p{p:03d}_i{i:03d}.png",
                "content": content.replace("{subject}", name),
                "text": self.method.prompt(self.fields, content, self.descriptor),
                "judged": self.method.judgement(self.fields, content, self.descriptor),
                "seed": self.config.seed + 1000 * number + i,
                **source,
            }
            for p, (content, (name, source)) in enumerate(
                itertools.product(self.contents, pictures)
            )
            for i in range(count)
        ]

    def _follow(self, row: Mapping[str, Any]) -> guidance.Follow | None:
        """The picture that a drawing follows, if it is one drawn anew."""
        if "source" not in row:
            return None
        _, square = self.redrawn[row["source"]]
        return sources.follow(self.method, self.fields, self.model, square, row["text"])

    def _draw(
        self, stage: str, pool: Sequence[dict], branches: Any, settings: SampleSettings, batch: int
    ) -> None:
        if self.run.done(f"{stage}/scores.jsonl"):
            return
        for _, group in itertools.groupby(
            pool, lambda row: row["prompt"] if "source" in row else None
        ):
            rows = list(group)
            guidance.generate_files(
                f"{stage}: drawing",
                [self.run.path(stage, row["file"]) for row in rows],
                [row["text"] for row in rows],
                [row["seed"] for row in rows],
                branches,
                settings=settings,
                batch_size=batch,
                follow=self._follow(rows[0]),
            )

    def _score(
        self, stage: str, pool: Sequence[dict[str, Any]], weights: Any
    ) -> list[dict[str, Any]]:
        path = self.run.path(stage, "scores.jsonl")
        if path.exists():
            return read_jsonl(path)
        rows = [dict(row) for row in pool]
        images = np.stack(
            [image_files.read_image(self.run.path(stage, row["file"])) for row in rows]
        )
        samples = scorers.Samples(
            images=images.astype(np.float32) / 255,
            prompts=[row["judged"] for row in rows],
            ids=[(row["prompt"], row["image"]) for row in rows],
            references=self.references,
            clip=self.clip,
            seed=self.config.seed,
        )
        scores, total = scorers.score(samples, weights)
        for i, row in enumerate(rows):
            row["scores"] = {name: float(values[i]) for name, values in scores.items()}
            row["score"] = float(total[i])
        text, style = (np.mean(scores[name]) for name in ("clip_text", "clip_style"))
        log.say(
            f"{stage}: text score {text:.3f}, style score {style:.3f}, mean of {len(rows)} drawings"
        )
        write_bytes(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        return rows

    def _select(
        self, stage: str, rows: Sequence[dict[str, Any]], settings: ConfigDict
    ) -> list[dict[str, Any]]:
        path = self.run.path(stage, "selected.json")
        if path.exists():
            return read_json(path)["selected"]
        if settings.by == "human":
            chosen = self._ask(stage, rows)
        else:
            records = [
                select.Record(prompt=r["prompt"], image=r["image"], score=r["score"]) for r in rows
            ]
            best = select.select(
                records, by=settings.by, k=settings.k, threshold=settings.threshold
            )
            kept = {(record.prompt, record.image) for record in best}
            chosen = [row for row in rows if (row["prompt"], row["image"]) in kept]
        write_json(path, {"selected": chosen})
        return chosen

    def _write_grid(
        self, stage: str, rows: Sequence[dict[str, Any]], chosen: Sequence[dict[str, Any]]
    ) -> None:
        """All drawings of a round on one sheet, those of a prompt side by side, the chosen ones framed."""
        if self.run.done(f"{stage}/grid.png"):
            return
        kept = {row["file"] for row in chosen}
        alike = len(rows) // len({row["prompt"] for row in rows})
        sheet = sheets.grid(
            [image_files.read_image(self.run.path(stage, row["file"])) for row in rows],
            columns=alike * max(1, round(len(rows) ** 0.5 / alike)),
            marked=[i for i, row in enumerate(rows) if row["file"] in kept],
            captions=[row["content"] for row in rows],
        )
        image_files.write_png(self.run.path(stage, "grid.png"), sheet)
        self.logger.image(f"{stage}/drawings", 0, sheet)

    def _ask(self, stage: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        folder = self.run.path(stage, "feedback")
        answer = folder / select.ANSWER
        if not answer.exists():
            with guard(folder):
                folder.mkdir(parents=True, exist_ok=True)
            select.write_request(
                folder,
                [self.run.path(stage, row["file"]) for row in rows],
                prompts=[row["text"] for row in rows],
            )
        content = read_json(answer)
        if isinstance(content, dict) and content.get("selected") == []:
            raise Paused(
                f"{stage}: look at {folder / select.SHEET}, write the numbers you choose into {answer}, "
                "and run the same command again"
            )
        return [rows[i] for i in select.read_answer(answer, num_images=len(rows))]


def _settings(sample: ConfigDict) -> SampleSettings:
    return SampleSettings(
        **{field.name: sample[field.name] for field in dataclasses.fields(SampleSettings)}
    )
