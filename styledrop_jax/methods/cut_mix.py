"""Several subjects that do not blend, by Cut-Mix-Unmix (SVDiff, 2303.11305 section 3.3).

Each content of the references, "a sks dog" and "a aug cat", is a subject. Beside each alone, the model sees two of them
cut and put next to each other, under a prompt that says where which is. The paper draws such an example with
probability 0.6 at each step; here they are a stream whose weight, 0.6 / 0.4, is the same in the mean. Its mixed images
of the class prior are left out.
"""

from styledrop_jax.methods.base import Method, Stream

CUT_MIX = Method(
    streams=(Stream(section="reference", prompt="photo of {content}"),),
    mixed=Stream(section="mix", prompt="photo of {left} on the left and {right} on the right"),
    draws="photo of {content}",
    judged="{content}",
    pool=("{left}", "{left} sitting beside {right}", "{left} and {right} on a blue background"),
)
