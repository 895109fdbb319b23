"""What comes before the first stage: the base model is loaded, what was read is checked on it, and
the manifest is written.
"""

import dataclasses
import hashlib
import logging
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax import log, trainable, tree
from styledrop_jax.adapters.base import Trainable, load_adapter
from styledrop_jax.base_model import load as load_pipeline
from styledrop_jax.errors import UserError, shown
from styledrop_jax.interchange.read import Initial, read_init
from styledrop_jax.io import hub, image_files
from styledrop_jax.io.run_folder import Run
from styledrop_jax.methods import identifiers, prompts
from styledrop_jax.methods.base import SUBJECT, Program, Prompt, Stream, joined
from styledrop_jax.models.reading import SYNTAX, Reading
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.registry import ADAPTERS
from styledrop_jax.spec import RunSpec
from styledrop_jax.stages import class_images, objective
from styledrop_jax.stages.job import Job, Taught
from styledrop_jax.stages.read import Read
from styledrop_jax.stages.sample import follow, round_pool
from styledrop_jax.training import mesh

_LOG = logging.getLogger(__name__)


def begin(
    spec: RunSpec,
    run: Run,
    logger: log.Logger,
    read: Read,
    *,
    base: str = "",
    beside: Job | None = None,
) -> Job:
    """Loads the base model, or takes that of a run `beside` this one with the same `config.base`,
    and checks what only it can tell, before anything is trained or sampled.

    Raises:
        UserError: a model is missing or does not fit, or the run cannot be carried out on it.
    """
    clip_folder = hub.resolve(spec.clip, field="config.clip", revision=run.revision("clip"))
    if beside is not None:
        pipeline = beside.pipeline
    else:
        pipeline = load_pipeline(
            base or spec.base,
            jnp.dtype(spec.dtype),
            weights=jnp.dtype(spec.weights_dtype),
            revision="" if base else run.revision("base"),
            vae=spec.vae,
            loras=spec.loras,
            devices=mesh.make(spec.mesh),
        )
    _check_base(run, pipeline)
    pipeline = pipeline.reads(spec.reading)
    initial = read_init(Path(spec.init), pipeline) if spec.init else None
    job = Job(
        spec=spec,
        run=run,
        logger=logger,
        program=read.program,
        prompts=read.said,
        given=read.given,
        pipeline=pipeline,
        clip_folder=clip_folder,
        by_round=read.by_round,
        trainables=trainables(spec, read.program, initial),
        start=initial and initial.state,
        learnt=_learnt(spec, pipeline),
        beside=beside,
    )
    _check_on_pipeline(job)
    _warn(job)
    how = spec.round(1).sample
    streams = []
    for stream in read.program.streams:
        streams.append(class_images.filled(stream, pipeline, how, dtype=spec.dtype, seed=spec.seed))
    job = dataclasses.replace(job, program=dataclasses.replace(read.program, streams=streams))
    _write_manifest(job)
    return job


def _check_base(run: Run, pipeline: Pipeline) -> None:
    base = run.manifest.get("base", {})
    if not isinstance(base, dict):
        path = run.path("manifest.json")
        raise UserError(f"{path}: base is {shown(base)}, expected an object as a run leaves it")
    began_on = base.get("hash", pipeline.base_hash)
    if began_on != pipeline.base_hash:
        raise UserError(
            f"{run.workdir}: {pipeline.name} is not the base model that this run began on "
            "(config.base, config.vae or config.base_loras: weights, tokenizer or schedule changed)"
        )


def _learnt(spec: RunSpec, pipeline: Pipeline) -> Initial | None:
    """What ships with the base model for rounds to start from; None if no round asks for it, there
    is none, or `config.vae` or `config.base_loras` made it another model.
    """
    path = hub.SHIPPED / spec.base / hub.START
    asked = any(spec.round(number).start == "learnt" for number in range(1, spec.rounds + 1))
    if not asked or not hub.is_shipped(spec.base) or not path.is_file():
        return None
    if load_adapter(path).base_hash != pipeline.base_hash:
        return None
    return read_init(path, pipeline)


def trainables(spec: RunSpec, program: Program, initial: Initial | None = None) -> list[Trainable]:
    """What trains in each round; in the first what `config.init` holds, if that names a file."""
    words = _identifiers(program)
    found = []
    for number in range(1, spec.rounds + 1):
        adapter = spec.round(number).adapter
        kind = next(kind for kind in ADAPTERS.values() if kind.settings is type(adapter))
        found.append(kind.trains(adapter, words))
    if initial is not None:
        found[0] = _started(found[0], initial, spec.init)
    return found


def _identifiers(program: Program) -> list[str]:
    """The words that stand for something new, as prompts say them."""
    said = [joined(word) for word in program.identifiers.values()]
    return [word for word in said if word]


def _started(what: Trainable, initial: Initial, path: str) -> Trainable:
    """What the file holds; UserError if that is another kind than round 1 trains."""
    for part in ("denoiser", "text", "words"):
        asked = getattr(what, part)
        held = getattr(initial.what, part)
        if type(asked) is not type(held):
            expected = "nothing" if asked is None else asked.kind
            found = "nothing" if held is None else held.kind
            raise UserError(
                f"config.init: {path} holds {found} for the {part}, and "
                f"config.round_1.adapter trains {expected}; expected the same"
            )
    if what.words is not None and _words(what) != _words(initial.what):
        raise UserError(
            f"config.init: {path} holds the words {_words(initial.what)}, and the run learns "
            f"{_words(what)}; expected config.words.identifier to be the same"
        )
    return initial.what


def _words(what: Trainable) -> str:
    return ", ".join(token.word for token in what.words.tokens)


def _check_on_pipeline(job: Job) -> None:
    """Everything that could fail in the middle of a run is tried once, in small."""
    for what in job.trainables:
        words_alone = Trainable(words=what.words)
        trainable.attach(job.pipeline, words_alone, rngs=nnx.Rngs(0))
    for sample in round_pool(job, 0):
        if sample.source:
            follow(job, sample.source, sample.text)
    objective.sizes(job.program.streams, job.pipeline)
    for stream in job.program.streams:
        for number in range(1, job.spec.rounds + 1):
            if stream.unmix:
                objective.check_attention(stream, job.pipeline, job.spec.round(number).train)
    _check_prompts(job)


def _check_prompts(job: Job) -> None:
    """UserError for what cannot be said where prompts have weights."""
    if not job.spec.prompt_weights:
        return
    for word in _identifiers(job.program):
        if set(word) & set(SYNTAX):
            raise UserError(
                f"config.words.identifier: {shown(word)} has a bracket or a backslash, which "
                "config.prompt_weights reads as a weight; expected another word"
            )
    prompts = []
    for stream in job.program.streams:
        prompts += [example.prompt for example in stream.examples]
    for number in range(1, job.spec.rounds + 1):
        prompts.append(job.spec.round(number).sample.negative_prompt)
        prompts += [prompt.text for prompt in job.prompts_of(number)]
    job.pipeline.text_chunks(prompts)


def _warn(job: Job) -> None:
    """What may be a mistake, a line each."""
    remarks = _identifier_remarks(job)
    for prompt in job.prompts:
        remarks.append(prompt.remark)
    for remark in remarks:
        if remark:
            _LOG.warning(remark)
    warn_of_unknown(job.spec.base, job.prompts, job.spec.reading)


def warn_of_unknown(base: str, said: Sequence[Prompt], reading: Reading) -> None:
    """Warns of prompts that name nothing that a shipped base model was taught."""
    texts = []
    for prompt in said:
        # Not the words of the style: "orange paper" is no orange.
        own = prompt.judged if SUBJECT in prompt.content else prompt.content
        texts.append(reading.plain(own))
    model = hub.shipped_vocabulary(base)
    unknown = prompts.unknown(texts, model)
    for text in unknown:
        _LOG.warning(
            f"{text!r} names nothing that {base} was taught; its samples may show anything"
        )
    if unknown:
        _LOG.warning(f"all that {base} was taught is listed in {model / prompts.VOCABULARY}")


def _identifier_remarks(job: Job) -> list[str]:
    """Of identifiers that are words already; where new words are learnt they are not."""
    if any(what.words for what in job.trainables):
        return []
    words = _identifiers(job.program)
    remarks = []
    for word in words:
        remark = identifiers.remark(job.pipeline.tokenizer, word)
        remarks.append(remark and f"identifier {remark}")
    for word in prompts.known(words, hub.shipped_vocabulary(job.spec.base)):
        remarks.append(
            f"identifier {word!r} already names something to {job.spec.base}, which must forget it"
        )
    return remarks


# -------------------------------------------------------------- the manifest


def _write_manifest(job: Job) -> None:
    streams = [_described(stream) for stream in job.program.streams if not stream.teaches]
    if job.run.manifest.get("streams", streams) != streams:
        raise UserError(
            f"{job.run.workdir}: the images of a further stream have changed since this run began"
        )
    libraries = {}
    for name in ("styledrop_jax", "jax", "flax", "optax"):
        libraries[name] = version(name)
    job.run.update_manifest(
        {
            "references": [_reference(job, item) for item in job.given],
            "streams": streams,
            "prompts": [prompt.content for prompt in job.prompts],
            **_models(job),
            "versions": {**libraries, "python": platform.python_version()},
            "device": jax.devices()[0].device_kind,
        }
    )


def _models(job: Job) -> dict[str, dict[str, Any]]:
    """The records of the base model, and of a CLIP that is of the hub."""
    base: dict[str, Any] = {
        "name": job.pipeline.name,
        "hash": job.pipeline.base_hash,
        "parameters": tree.count(nnx.state(job.pipeline.denoiser)),
    }
    if job.pipeline.revision:
        base["revision"] = job.pipeline.revision
    for field in ("vae", "base_loras"):
        if said := getattr(job.spec, field):
            base[field] = said
    commit = hub.commit(job.clip_folder)
    if not commit:
        return {"base": base}
    return {"base": base, "clip": {"name": job.spec.clip, "revision": commit}}


def _described(stream: Stream) -> dict[str, Any]:
    hashes = []
    for example in stream.examples:
        hashes.append(hashlib.sha256(example.image.tobytes()).hexdigest())
    return {"prompt": stream.caption("", ""), "weight": stream.weight, "sha256": hashes}


def _reference(job: Job, item: Taught) -> Mapping[str, str]:
    """The record of an image of the user's, which the run folder keeps as it trains."""
    reference = item.reference
    if not job.run.done(item.file):
        square = image_files.to_square(
            reference.image, job.pipeline.resolution, ground=reference.ground
        )
        image_files.write_png(job.run.path(item.file), square)
    return {
        "section": item.section,
        "path": reference.path,
        "file": item.file,
        "content": reference.content,
        "descriptor": reference.descriptor,
        "sha256": reference.sha256,
        "fit": "keep" if reference.keeps else "pad" if reference.ground else "crop",
        "ground": reference.ground,
        "caption": item.caption,
    }
