"""StyO (2303.03231): content and style of a source and a target, told apart by what each prompt says they are not.

Three streams train (the identifier disentanglement learner), and the result's prompt recombines: the target's style,
the source's content. While it is drawn, the source's cross-attention is kept at the words of its content (the
fine-grained content controller). The paper's auxiliary images are 200 faces of FFHQ.
"""

from styledrop_jax.methods.base import Method, Stream

_SOURCE_STYLE = "{source.style} [{contrast.negator} {target.style}]"
_TARGET_STYLE = "{target.style} [{contrast.negator} {source.style}]"
_SOURCE_CONTENT = (
    "({source.content} [{contrast.negator} {target.content}])×{contrast.content_repeats} {noun}"
)
_TARGET_CONTENT = (
    "({target.content} [{contrast.negator} {source.content}])×{contrast.content_repeats} {noun}"
)
_REPEATS = "{contrast.style_repeats}"
_SOURCE = Stream(
    section="source",
    prompt=f"a drawing with ({_SOURCE_STYLE})×{_REPEATS} style of {_SOURCE_CONTENT}",
)

STYO = Method(
    streams=(
        Stream(
            section="target",
            prompt=f"a drawing with ({_TARGET_STYLE})×{_REPEATS} style of {_TARGET_CONTENT}",
        ),
        _SOURCE,
        Stream(
            section="aux",
            prompt=f"a drawing with {_SOURCE_STYLE} style of {{noun}}",
            generated="a {noun}",
        ),
    ),
    draws="{content}",
    subject=f"a drawing with ({_TARGET_STYLE})×{_REPEATS} style of {_SOURCE_CONTENT}",
    pool=("{subject}",),
    learns=("source.style", "source.content", "target.style", "target.content"),
    redraws=_SOURCE,
    keeps=_SOURCE_CONTENT,
)
