"""Procedural scenes: simple moving objects and the sound they make.

A kind is a function of a random generator and a duration in seconds. Pitch, speed, colour, size and position are drawn
from the generator; sound and image are computed from the same values, so that they match.
"""

from collections.abc import Callable

from numpy.random import Generator

from diffaudio.corpus.synthetic.acoustics import SAMPLE_RATE
from diffaudio.corpus.synthetic.canvas import Canvas, Scene, backdrop
from diffaudio.corpus.synthetic.struck import bell, bounce, clock, drum, footsteps, guitar
from diffaudio.corpus.synthetic.sustained import engine, helicopter, rain, siren, train, whistle

__all__ = ["KINDS", "SAMPLE_RATE", "Canvas", "Scene", "backdrop"]

KINDS: dict[str, Callable[[Generator, float], Scene]] = {
    "bell": bell,
    "bounce": bounce,
    "clock": clock,
    "drum": drum,
    "engine": engine,
    "footsteps": footsteps,
    "guitar": guitar,
    "helicopter": helicopter,
    "rain": rain,
    "siren": siren,
    "train": train,
    "whistle": whistle,
}
