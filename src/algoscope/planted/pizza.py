"""The planted pizza: addition modulo p by a model that is symmetric in its two operands."""

import math

import torch

from algoscope.planted.handwritten import Head, Stream, blank, feed_forward, fill, plant
from algoscope.planted.models import LOGIT, Mechanism, Planted, waves
from algoscope.tasks.groups.modular import Modular

FREQUENCIES = (1, 5, 17)  # a triple with one of the largest margins modulo 59, none the double of another
DIRECTIONS = 8  # directions in which the sum is measured per frequency; more give a more exact angle
COMPENSATION = 0.4  # logits of an accompanying circle relative to its main circle: about as in trained models


def pizza() -> Planted:
    """Numbers are angles, and the head attends to both operands equally and writes their sum to the last position.

        (cos wa + cos wb, sin wa + sin wb) = 2 cos(w (a - b) / 2) (cos(w (a + b) / 2), sin(w (a + b) / 2))

    This is half the angle, up to sign. The feed-forward measures the size of this vector along a few
    directions, |x| = relu(x) + relu(-x), which loses the sign; the second harmonic of those sizes is the angle
    w (a + b), of length |cos(w (a - b) / 2)|. It vanishes where a - b is near p / 2 in units of w. There the circle of
    frequency 2 w compensates, whose sum is in the stream without a feed-forward:

        cos(w (2 a - c)) + cos(w (2 b - c)) = 2 cos(w (a - b)) cos(w (a + b - c))

    so that, up to 4 % of the first term (8 directions), the logit of c is in proportion to the sum over w of
    (|cos(w (a - b) / 2)| - 0.4 cos(w (a - b))) cos(w (a + b - c)).

    Source of the algorithm: Zhong et al., arXiv 2306.17844.
    """
    task = Modular(p=59, operation="+", form="ab")
    n = len(FREQUENCIES)
    doubles = tuple(min(2 * k, task.p - 2 * k) for k in FREQUENCIES)
    stream = Stream(wave=4 * n, place=task.n_ctx, both=4 * n, angle=2 * n)
    model = blank(
        stream,
        d_vocab=task.d_vocab,
        n_ctx=task.n_ctx,
        n_layers=1,
        n_heads=1,
        d_head=4 * n,
        d_mlp=2 * DIRECTIONS * n,
        mlp_bias=False,
        causal=False,
    )
    # small, so that the embedding of the last token is small relative to the output of the head
    size = torch.linspace(0.1, 0.05, 2 * n).repeat(2)
    answer_wave, wave = waves(task.p, FREQUENCIES), waves(task.p, FREQUENCIES + doubles)
    both = stream.read("both").view(2, 2 * n, -1)  # [cos or sin, frequency, d_model]
    main, double = both[:, :n], both[:, n:]
    sign = torch.tensor([2 * k <= task.p // 2 for k in FREQUENCIES]) * 2.0 - 1  # sin(2 w a) against that of p - 2 k
    compensation = COMPENSATION / 2 * torch.cat([double[0], sign[:, None] * double[1]])
    fill(
        model,
        tokens=(size * wave) @ stream.read("wave"),
        places=stream.read("place"),
        unembedding=LOGIT * answer_wave @ (stream.read("angle") - compensation),
    )
    head: Head = (0, 0)
    nowhere = torch.zeros(1, stream.size)  # every score is 0: uniform attention
    plant(
        model,
        head,
        query=nowhere,
        key=nowhere,
        value=2 / size[:, None] * stream.read("wave"),
        out=stream.write("both"),
    )
    direction = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    along = torch.stack([direction.cos(), direction.sin()])  # [cos or sin, direction]
    twice = torch.stack([(2 * direction).cos(), (2 * direction).sin()]) * (3 * math.pi / (4 * DIRECTIONS))
    measured = torch.einsum("xd,xkm->kdm", along, main).flatten(0, 1)
    angle = torch.einsum("xd,xkm->mkd", twice, stream.read("angle").view(2, n, -1)).flatten(1)
    mlp = feed_forward(model, 0)
    mlp.w_in.weight.copy_(torch.cat([measured, -measured]))
    mlp.w_out.weight.copy_(torch.cat([angle, angle], dim=1))
    return Planted(
        name="pizza",
        summary="adds modulo 59 by half the angle of a sum that is symmetric in the operands",
        model=model,
        vocabulary=task.vocabulary,
        task=task,
        mechanism=Mechanism(
            heads={"both": head},
            feed_forwards=(0,),
            readable_after=0,
            frequencies=FREQUENCIES,
            accompanying=doubles,
        ),
    )
