"""Struck, plucked and footstep scenes: each sound starts when two bodies visibly make contact."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from diffaudio.corpus.synthetic.acoustics import GRAVITY, SAMPLE_RATE, SOUND_SPEED, add_at, clock_of, pluck, ring
from diffaudio.corpus.synthetic.canvas import Canvas, Scene, color, surroundings

__all__ = ["bell", "bounce", "clock", "drum", "footsteps", "guitar"]

WOOD, DARK, STEEL = (150, 98, 52), (45, 42, 40), (150, 155, 165)

SPHERE = (2.082, 3.342, 4.493)  # x where the derivative of a spherical Bessel function of order 1, 2, 0 is zero
BELL = (0.501, 1.0, 1.204, 1.497, 2.006, 3.006, 4.158, 4.832, 5.431)  # 251, 501, 603, 750, 1005, … Hz
MEMBRANE = ((0, 2.405), (1, 3.832), (2, 5.136), (0, 5.520), (3, 6.380), (1, 7.016), (4, 7.588), (2, 8.417), (0, 8.654))
STRINGS_HZ = (82.4, 110.0, 146.8, 196.0, 246.9, 329.6)  # E2 A2 D3 G3 B3 E4


def _regular(first_s: float, period_s: float, duration_s: float) -> np.ndarray:
    return np.arange(first_s, duration_s, period_s)


def bounce(rng: Generator, duration_s: float) -> Scene:
    """A ball that falls and bounces; once it has come to rest, another one follows.

    Free fall under g; at each impact the speed v becomes e v upward, with e the coefficient of restitution, so that
    flights last 2 v / g. A ball sounds with an amplitude proportional to v, by the thump of its shell and the modes
    of the air inside, f = x c / (2 pi r) with x the zeros of the derivatives of the spherical Bessel functions.
    """
    height_m, restitution = rng.uniform(1.0, 1.8), rng.uniform(0.68, 0.85)
    metre, x, floor = 0.6 / height_m, rng.uniform(0.25, 0.75), rng.uniform(0.82, 0.92)
    radius_m = rng.uniform(0.07, 0.11) / metre
    colors = [color(rng) for _ in range(5)]
    flights = list(_flights(height_m, restitution, duration_s, first_s=rng.uniform(0.1, 0.4)))
    begins_s = np.array([begin_s for begin_s, *_ in flights])
    air = np.array(SPHERE) * SOUND_SPEED / (2 * np.pi * radius_m)
    heard = ring([14 / radius_m, *air], [1, 0.35, 0.2, 0.12], [0.05, 0.06, 0.045, 0.04])
    sound = np.zeros(len(clock_of(duration_s)))
    for begin_s, up, _, struck in flights:
        if struck:
            add_at(sound, begin_s, up / np.sqrt(2 * GRAVITY * height_m) / restitution * heard)

    def draw(canvas: Canvas, now_s: float) -> None:
        begin_s, up, ball, struck = flights[int(np.searchsorted(begins_s, now_s, side="right")) - 1]
        since_s = now_s - begin_s
        above_m = max(0.0, (0 if struck else height_m) + up * since_s - GRAVITY / 2 * since_s**2)
        radius, y = radius_m * metre, floor - (above_m + radius_m) * metre
        canvas.ellipse(x, floor, radius * (1.1 - 0.5 * above_m / height_m), 0.012, DARK)
        canvas.disc(x, y, radius, colors[ball % len(colors)])
        canvas.disc(x - radius / 3, y - radius / 3, radius / 4, (255, 255, 255))

    return Scene(sound, draw, x, **surroundings(rng, floor - 0.08))


def _flights(
    height_m: float, restitution: float, duration_s: float, *, first_s: float
) -> Iterator[tuple[float, float, int, bool]]:
    """Start (seconds), upward speed (m/s), ball index, and whether the flight starts with an impact.

    Args:
        first_s: when the first ball touches the ground.
    """
    fall_s = np.sqrt(2 * height_m / GRAVITY)
    begin_s, ball = first_s - fall_s, 0
    while begin_s < duration_s:
        yield begin_s, 0.0, ball, False
        begin_s, speed = begin_s + fall_s, restitution * GRAVITY * fall_s
        while speed > 0.5 and begin_s < duration_s:
            yield begin_s, speed, ball, True
            begin_s, speed = begin_s + 2 * speed / GRAVITY, restitution * speed
        ball += 1


def bell(rng: Generator, duration_s: float) -> Scene:
    """A swinging church bell, struck by its clapper at both ends of the swing.

    Partials of a Hemony carillon bell as measured by Lehr 1986, "Partial groups in the bell sound", JASA 79, from hum
    and prime over the minor third (1.2) and the fifth up; they are inharmonic. A bell's frequencies scale as
    1 / size, and its low partials ring longest.
    """
    size, x, period_s = rng.uniform(0.2, 0.32), rng.uniform(0.4, 0.6), rng.uniform(1.0, 1.8)
    first_s, swing, metal = rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.5), color(rng, saturation=0.55, value=0.75)
    frequencies = rng.uniform(120, 150) / size * np.array(BELL)
    heard = ring(frequencies, [0.6, 0.8, 1, 0.4, 0.9, 0.5, 0.3, 0.2, 0.15], 1.1 / (0.4 + np.array(BELL)))
    sound = np.zeros(len(clock_of(duration_s)))
    for time_s in _regular(first_s, period_s / 2, duration_s):
        add_at(sound, time_s, rng.uniform(0.7, 1) * heard)

    def draw(canvas: Canvas, now_s: float) -> None:
        angle = swing * np.cos(2 * np.pi * (now_s - first_s) / period_s)
        top = 0.22

        def at(across: float, down: float) -> tuple[float, float]:
            return (
                x + size * (across * np.cos(angle) + down * np.sin(angle)),
                top + size * (down * np.cos(angle) - across * np.sin(angle)),
            )

        canvas.box(0.1, top - 0.07, 0.9, top - 0.02, WOOD)
        hangs = angle * (1 + 0.5 / swing)  # the clapper swings farther, so that it meets the rim at both ends
        canvas.line([(x, top), (x + 1.75 * size * np.sin(hangs), top + 1.75 * size * np.cos(hangs))], 0.02, DARK)
        canvas.disc(x + 1.8 * size * np.sin(hangs), top + 1.8 * size * np.cos(hangs), 0.045, DARK)
        outline = [(0.35, 0.1), (0.5, 0.5), (0.6, 1.0), (0.95, 1.45)]
        canvas.shape([at(*point) for point in outline] + [at(-a, d) for a, d in reversed(outline)], metal)
        canvas.line([at(-0.95, 1.45), at(0.95, 1.45)], 0.025, DARK)

    return Scene(sound, draw, x, **surroundings(rng, 0.93))


def drum(rng: Generator, duration_s: float) -> Scene:
    """A drum struck by a stick.

    Modes of a circular membrane of radius a: f_mn = j_mn / (2 pi a) sqrt(T / sigma), with j_mn the n-th zero of the
    Bessel function J_m; struck at r, mode (m, n) is as strong as J_m(j_mn r / a). Rossing & Fletcher 2004, "Principles
    of Vibration and Sound", chapter 3. Wave speeds sqrt(T / sigma) are those of tuned heads, around 100 m/s.
    """
    radius, x, head = rng.uniform(0.17, 0.3), rng.uniform(0.35, 0.65), rng.uniform(0.52, 0.64)
    period_s, first_s, where = rng.uniform(0.22, 0.5), rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.6)
    zero = np.array([zero for _, zero in MEMBRANE])
    fundamental = 2.405 * rng.uniform(80, 120) / (2 * np.pi * radius)  # a drum of 1 m across would fill the picture
    heard = ring(fundamental * zero / 2.405, [_bessel(*mode, where) for mode in MEMBRANE], 0.32 * 2.405 / zero)
    times_s, shell = _regular(first_s, period_s, duration_s), color(rng)
    strengths = np.where(np.arange(len(times_s)) % 4 == 0, 1.0, rng.uniform(0.5, 0.8, len(times_s)))
    sound = np.zeros(len(clock_of(duration_s)))
    for time_s, strength in zip(times_s, strengths, strict=True):
        add_at(sound, time_s, strength * heard)

    def draw(canvas: Canvas, now_s: float) -> None:
        lifted = 0.16 * abs(np.sin(np.pi * (now_s - first_s) / period_s))
        bottom = head + 1.1 * radius
        canvas.ellipse(x, bottom, radius, radius / 4, shell)
        canvas.box(x - radius, head, x + radius, bottom, shell)
        canvas.ellipse(x, head, radius, radius / 4, (240, 235, 222))
        canvas.circle(x, head, radius, radius / 4, STEEL, 0.015)
        tip = (x + where * radius, head - lifted - 0.02)
        canvas.line([tip, (tip[0] + 0.3, tip[1] - 0.16 - 0.7 * lifted)], 0.022, WOOD)
        canvas.disc(*tip, 0.022, WOOD)

    return Scene(sound, draw, x, **surroundings(rng, 0.75))


def _bessel(order: float, zero: float, where: float) -> float:
    """J_m(j r / a), by its integral: the mean of cos(m theta - z sin theta) over half a turn."""
    theta = np.pi * (np.arange(64) + 0.5) / 64
    return float(np.cos(order * theta - zero * where * np.sin(theta)).mean())


def clock(rng: Generator, duration_s: float) -> Scene:
    """A pendulum clock that ticks whenever the pendulum passes the middle.

    A pendulum of length L swings with the period 2 pi sqrt(L / g) (Huygens 1673). Tick and tock are the short modes
    of metal parts, a little apart, in a wooden case.
    """
    length_m, x, first_s = rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.65), rng.uniform(0.05, 0.3)
    period_s, wood, bob = 2 * np.pi * np.sqrt(length_m / GRAVITY), color(rng, value=0.5), color(rng, saturation=0.5)
    metal, case = rng.uniform(2200, 3400), rng.uniform(350, 700)
    sounds = [
        ring(shift * np.array([metal, 1.56 * metal, 2.31 * metal, case]), [1, 0.7, 0.4, 0.5], [6e-3, 4e-3, 3e-3, 0.02])
        for shift in (1.0, rng.uniform(0.8, 0.92))
    ]
    sound = np.zeros(len(clock_of(duration_s)))
    for number, time_s in enumerate(_regular(first_s, period_s / 2, duration_s)):
        add_at(sound, time_s, rng.uniform(0.85, 1) * sounds[number % 2])
    reach = 0.3 + 0.35 * length_m

    def draw(canvas: Canvas, now_s: float) -> None:
        angle = 0.45 * np.sin(2 * np.pi * (now_s - first_s) / period_s)
        end = (x + reach * np.sin(angle), 0.36 + reach * np.cos(angle))
        canvas.line([(x, 0.36), end], 0.012, DARK)
        canvas.disc(*end, 0.06, bob)
        canvas.box(x - 0.19, 0.06, x + 0.19, 0.44, wood)
        canvas.disc(x, 0.25, 0.155, (250, 248, 238))
        for hour in range(12):
            turn = hour * np.pi / 6
            canvas.disc(x + 0.13 * np.sin(turn), 0.25 - 0.13 * np.cos(turn), 0.008, DARK)
        for hand, turns in ((0.08, 0.1), (0.115, 0.7 + np.floor(2 * (now_s - first_s) / period_s) / 60)):
            turn = 2 * np.pi * turns
            canvas.line([(x, 0.25), (x + hand * np.sin(turn), 0.25 - hand * np.cos(turn))], 0.014, DARK)

    return Scene(sound, draw, x, **surroundings(rng, 0.95))


def guitar(rng: Generator, duration_s: float) -> Scene:
    """A guitar whose strings are plucked one after another; the sounding string visibly vibrates.

    Plucked strings after Karplus & Strong (`acoustics.pluck`), in standard tuning and up to seven frets higher.
    """
    fret = int(rng.integers(0, 8))
    period_s, first_s, y = rng.uniform(0.25, 0.5), rng.uniform(0.02, 0.2), rng.uniform(0.45, 0.6)
    gap, hole_x, body = rng.uniform(0.03, 0.042), rng.uniform(0.4, 0.5), color(rng, saturation=0.65, value=0.7)
    times_s = _regular(first_s, period_s, duration_s)
    played = rng.integers(0, 6, len(times_s))
    sound = np.zeros(len(clock_of(duration_s)))
    for time_s, string, end_s in zip(times_s, played, [*times_s[3:], *([duration_s] * 3)], strict=False):
        heard = pluck(rng, STRINGS_HZ[string] * 2 ** (fret / 12), 1.5, end_s - time_s)
        release = np.minimum(1, (len(heard) - np.arange(len(heard))) / (0.03 * SAMPLE_RATE))
        add_at(sound, time_s, rng.uniform(0.7, 1) * heard * release)

    def draw(canvas: Canvas, now_s: float) -> None:
        canvas.ellipse(0.27, y, 0.26, 0.33, body)
        canvas.ellipse(0.6, y, 0.2, 0.25, body)
        canvas.disc(hole_x + 0.05, y, 0.12, DARK)
        canvas.box(0.62, y - 3.2 * gap, 1, y + 3.2 * gap, WOOD)
        canvas.box(0.13, y - 3.4 * gap, 0.165, y + 3.4 * gap, DARK)
        last = int(np.searchsorted(times_s, now_s, side="right")) - 1
        for string in range(6):
            height = y + (2.5 - string) * gap
            since_s = min((now_s - time_s for time_s in times_s[: last + 1][played[: last + 1] == string]), default=9)
            swing = 0.022 * np.exp(-since_s / 0.5) * np.cos(60 * since_s)
            points = [(0.15 + 0.85 * u, height + swing * np.sin(np.pi * u)) for u in np.linspace(0, 1, 9)]
            canvas.line(points, 0.006 + 0.001 * (5 - string), (235, 230, 215))
        upcoming = int(played[min(last + 1, len(played) - 1)])
        pick_y = y + (2.5 - upcoming) * gap
        canvas.shape(
            [(hole_x, pick_y), (hole_x - 0.035, pick_y - 0.07), (hole_x + 0.035, pick_y - 0.07)], (220, 60, 60)
        )

    return Scene(sound, draw, 0.45, **surroundings(rng, 0.95))


def footsteps(rng: Generator, duration_s: float) -> Scene:
    """A person walking on gravel; a step sounds when the front foot lands.

    Grains that collide at random, at a decaying rate, each with a short resonance: PhISM, Cook 1997,
    "Physically informed sonic modeling", Computer Music Journal 21(3). Below them the thump of the heel.
    """
    step_s, first_s, height = rng.uniform(0.38, 0.62), rng.uniform(0.05, 0.3), rng.uniform(0.5, 0.66)
    x, ground, stride = rng.uniform(0.35, 0.65), rng.uniform(0.85, 0.92), rng.uniform(0.38, 0.5)
    clothes, trousers, skin = color(rng), color(rng, value=0.45), (224, 172, 140)
    grain = ring([rng.uniform(1800, 3200), rng.uniform(3500, 5500)], [1, 0.7], [1.5e-3, 1e-3])
    thump = ring([rng.uniform(70, 120)], [rng.uniform(2, 4)], [0.025])
    sound = np.zeros(len(clock_of(duration_s)))
    for time_s in _regular(first_s, step_s, duration_s):
        for late_s in rng.exponential(0.05, rng.poisson(90)):
            add_at(sound, time_s + late_s, rng.normal() * np.exp(-late_s / 0.12) * grain)
        add_at(sound, time_s, thump)
    leg, pebbles = 0.5 * height, rng.random((24, 2))

    def draw(canvas: Canvas, now_s: float) -> None:
        walked = (now_s - first_s) / step_s
        for px, py in pebbles:
            px = (px - walked * 2 * leg * np.sin(stride)) % 1
            canvas.ellipse(px, ground + 0.01 + py * (0.98 - ground), 0.014, 0.007, (95, 90, 85))
        hip = ground - leg * np.cos(stride * np.cos(np.pi * walked))
        neck = hip - 0.33 * height
        for side, shade in ((-1, DARK), (1, trousers)):
            angle = side * stride * np.cos(np.pi * walked)
            foot = (x + leg * np.sin(angle), hip + leg * np.cos(angle))
            canvas.line([(x, hip), foot], 0.05, shade)
            canvas.line([foot, (foot[0] + 0.045, foot[1])], 0.03, DARK)
            hand = (x - 0.3 * height * np.sin(angle), neck + 0.03 + 0.3 * height * np.cos(angle))
            canvas.line([(x, neck + 0.03), hand], 0.032, clothes)
        canvas.line([(x, neck), (x, hip)], 0.09, clothes)
        canvas.disc(x, neck - 0.06, 0.06, skin)

    return Scene(sound, draw, x, **surroundings(rng, ground - 0.1))
