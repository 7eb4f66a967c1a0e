"""Scenes with sustained sound: machines, weather, signals."""

import numpy as np
from numpy.random import Generator

from diffaudio.corpus.synthetic.acoustics import (
    SAMPLE_RATE,
    SOUND_SPEED,
    add_at,
    band_noise,
    clock_of,
    moving,
    phase,
    ring,
)
from diffaudio.corpus.synthetic.canvas import Canvas, Scene, color, mixed, surroundings

__all__ = ["engine", "helicopter", "rain", "siren", "train", "whistle"]

DARK, STEEL, SMOKE, WATER = (45, 42, 40), (150, 155, 165), (205, 205, 205), (96, 130, 158)


def engine(rng: Generator, duration_s: float) -> Scene:
    """A four-stroke engine with piston, flywheel and exhaust.

    Each cylinder fires once per two crank revolutions, at top dead centre; the pulse resonates in the exhaust pipe
    of length L, open at one end, at f = (2 k - 1) c / (4 L). The piston position is r cos phi +
    sqrt(l² - r² sin² phi), with r the crank radius and l the rod length (slider-crank).
    """
    t = clock_of(duration_s)
    turns_hz = rng.uniform(5, 9) * (1 + rng.uniform(0.1, 0.35) * np.sin(2 * np.pi * (rng.uniform(0.15, 0.5) * t + 0.5)))
    turned = np.cumsum(turns_hz) / SAMPLE_RATE + rng.uniform(0.5, 0.95)
    cylinders, pipe_m = int(rng.choice([1, 2, 4])), rng.uniform(0.6, 1.6)
    fired = np.flatnonzero(np.diff(np.floor((turned + (cylinders == 1)) * cylinders / 2))) + 1
    k = 2 * np.arange(1, 9) - 1
    pipe = ring(k * SOUND_SPEED / (4 * pipe_m), 1 / np.sqrt(k), 0.05 / np.sqrt(k))
    sound = 0.04 * band_noise(rng, len(t), 300, 3000) * turns_hz / turns_hz.mean()
    for sample in fired:
        shot = rng.uniform(0.75, 1) * pipe
        shot[:900] += 1.2 * rng.standard_normal(900) * np.exp(-np.arange(900) / 200)
        add_at(sound, sample / SAMPLE_RATE, shot)
    x, y, wheel, metal = rng.uniform(0.33, 0.5), rng.uniform(0.62, 0.68), rng.uniform(0.17, 0.24), color(rng)
    fired_s, crank = fired / SAMPLE_RATE, 0.42 * wheel

    def draw(canvas: Canvas, now_s: float) -> None:
        angle = 2 * np.pi * turned[min(round(now_s * SAMPLE_RATE), len(turned) - 1)]
        up = crank * np.cos(angle) + np.sqrt(0.25**2 - (crank * np.sin(angle)) ** 2)
        canvas.box(x - 0.11, y - 0.42, x + 0.11, y, metal)
        canvas.box(x - 0.075, y - 0.39, x + 0.075, y, (225, 225, 225))
        canvas.box(x - 0.075, y - up - 0.04, x + 0.075, y - up + 0.04, STEEL)
        canvas.box(x + 0.1, y - 0.38, x + 0.4, y - 0.33, DARK)
        for shot_s in fired_s[(fired_s <= now_s) & (fired_s > now_s - 0.35)]:
            age = (now_s - shot_s) / 0.35
            canvas.disc(x + 0.42 + 0.12 * age, y - 0.36 - 0.15 * age, 0.03 + 0.06 * age, SMOKE)
        canvas.disc(x, y, wheel, metal)
        canvas.disc(x, y, 0.8 * wheel, (225, 225, 225))
        for spoke in range(3):
            along = angle + 2 * np.pi * spoke / 3
            canvas.line([(x, y), (x + 0.9 * wheel * np.sin(along), y - 0.9 * wheel * np.cos(along))], 0.025, metal)
        pin = (x + crank * np.sin(angle), y - crank * np.cos(angle))
        canvas.line([pin, (x, y - up)], 0.03, DARK)
        canvas.disc(*pin, 0.025, DARK)

    return Scene(sound, draw, x, **surroundings(rng, 0.85))


def rain(rng: Generator, duration_s: float) -> Scene:
    """Rain on water: drops fall at random (a Poisson process), and each visible impact is heard.

    A drop leaves a bubble of radius a that rings at f = 3.26 m/s / a (Minnaert 1933, in water), damped by about
    delta = 0.05 per radian: tau = 1 / (pi f delta). Drops far away merge into noise. They fall at their terminal
    speed, some 7 m/s (Gunn & Kinzer 1949).
    """
    t, rate_hz = clock_of(duration_s), rng.uniform(40, 160)
    count, water, fall_s = rng.poisson(rate_hz * (duration_s + 0.6)), rng.uniform(0.62, 0.75), rng.uniform(0.3, 0.45)
    times_s, across, near = np.sort(rng.uniform(0, duration_s + 0.6, count)), rng.random(count), rng.random(count)
    bubbles_m = rng.uniform(0.25e-3, rng.uniform(0.9e-3, 1.8e-3), count)
    sound = rng.uniform(0.05, 0.15) * band_noise(rng, len(t), 800, 9000)
    for time_s, nearness, radius_m in zip(times_s, near, bubbles_m, strict=True):
        frequency = 3.26 / radius_m
        heard = ring([frequency], [rng.uniform(0.3, 1) / (1.2 - nearness)], [1 / (np.pi * frequency * 0.05)])
        add_at(sound, time_s, heard)
    wind, around = rng.uniform(-0.12, 0.12), surroundings(rng, water - 0.03)

    def draw(canvas: Canvas, now_s: float) -> None:
        first, last = np.searchsorted(times_s, (now_s - 0.3, now_s + fall_s))
        for time_s, u, nearness in zip(times_s[first:last], across[first:last], near[first:last], strict=True):
            ground, since_s = water + (0.98 - water) * nearness, now_s - time_s
            if since_s < 0:
                y, x = ground + since_s / fall_s * ground, u + wind * since_s / fall_s
                canvas.line([(x, y), (x - 0.06 * wind / ground, y - 0.06)], 0.005 + 0.006 * nearness, (225, 232, 245))
            else:
                size = (0.015 + 0.05 * since_s / 0.3) * (0.5 + nearness)
                canvas.circle(u, ground, size, size / 3, (225, 232, 245), 0.006)

    overcast = mixed((0, 0, 0), around["wall"], 0.6)
    return Scene(sound, draw, 0.5, wall=overcast, floor=WATER, horizon=around["horizon"])


def siren(rng: Generator, duration_s: float) -> Scene:
    """A police car whose siren wails, and whose lamp is brightest when the pitch is highest.

    The pitch varies sinusoidally between two frequencies on a logarithmic scale; a horn driven by a square wave
    produces the odd harmonics k with amplitudes 1 / k.
    """
    t, period_s, begin = clock_of(duration_s), rng.uniform(0.8, 3.5), rng.uniform(0, 2 * np.pi)
    low_hz, high_hz = rng.uniform(450, 700), rng.uniform(1100, 1600)
    height = 0.5 + 0.5 * np.sin(2 * np.pi * t / period_s + begin)
    angle = phase(low_hz * (high_hz / low_hz) ** height)
    sound = sum(np.sin(k * angle) / k for k in (1, 3, 5, 7)) * (0.8 + 0.2 * height)
    scale, speed, x0, ground = rng.uniform(0.8, 1.15), rng.uniform(0.02, 0.06), rng.uniform(0.35, 0.65), 0.86
    paint, lamp = color(rng), [(255, 60, 50), (60, 110, 255)][rng.integers(2)]

    def draw(canvas: Canvas, now_s: float) -> None:
        x, light = x0 + 3 * speed * np.sin(now_s / 3), height[min(round(now_s * SAMPLE_RATE), len(height) - 1)]

        def at(across: float, up: float) -> tuple[float, float]:
            return x + scale * across, ground - scale * up

        if light > 0.3:
            canvas.disc(*at(0, 0.4), scale * 0.2 * light, mixed(lamp, (255, 255, 255), 0.5))
        canvas.shape([at(-0.2, 0.22), at(-0.12, 0.35), at(0.12, 0.35), at(0.22, 0.22)], paint)
        canvas.shape([at(-0.16, 0.22), at(-0.1, 0.32), at(0.1, 0.32), at(0.17, 0.22)], (190, 220, 235))
        canvas.box(*at(-0.36, 0.23), *at(0.36, 0.08), paint)
        canvas.box(*at(-0.36, 0.17), *at(0.36, 0.13), (245, 245, 245))
        canvas.box(*at(-0.05, 0.41), *at(0.05, 0.35), mixed((0, 0, 0), lamp, 0.35 + 0.65 * light))
        for wheel in (-0.2, 0.2):
            canvas.disc(*at(wheel, 0.07), 0.075 * scale, DARK)
            canvas.disc(*at(wheel, 0.07), 0.035 * scale, STEEL)

    return Scene(sound, draw, x0, **surroundings(rng, ground - 0.08))


def whistle(rng: Generator, duration_s: float) -> Scene:
    """A referee's whistle blown intermittently; a pea circulates in it and makes it trill.

    The chamber is a Helmholtz resonator, f = c / (2 pi) sqrt(A / (V l)), with A the area of the opening, l its
    effective length and V the volume, so that larger ones are lower. Blowing also adds a hiss.
    """
    t, radius = clock_of(duration_s), rng.uniform(0.17, 0.24)
    radius_m = 0.05 * radius  # the whistle is drawn enlarged
    opening_m2, length_m, volume_m3 = 30e-6, 4e-3, np.pi * radius_m**2 * 0.02
    frequency = SOUND_SPEED / (2 * np.pi) * np.sqrt(opening_m2 / (volume_m3 * length_m))
    begins_s, ends_s, time_s = [], [], rng.uniform(0.02, 0.15)
    while time_s < duration_s:
        begins_s.append(time_s)
        ends_s.append(time_s + rng.uniform(0.25, 0.9))
        time_s = ends_s[-1] + rng.uniform(0.15, 0.45)
    blown = _blown(t, begins_s, ends_s)
    pea = phase(rng.uniform(24, 40) * (0.7 + 0.3 * blown))
    tone = np.sin(phase(frequency * (0.94 + 0.06 * blown) * (1 + 0.02 * np.cos(pea))))
    sound = blown * (tone * (0.75 + 0.25 * np.cos(pea)) + 0.06 * band_noise(rng, len(t), 1500, 8000))
    x, y, metal, hidden = rng.uniform(0.35, 0.5), rng.uniform(0.48, 0.62), color(rng), rng.uniform(0, 6, 5)

    def draw(canvas: Canvas, now_s: float) -> None:
        index = min(round(now_s * SAMPLE_RATE), len(t) - 1)
        pressure, shake = blown[index], 0.006 * blown[index] * np.sin(90 * now_s)
        cy = y + shake
        canvas.box(x, cy - radius, x + 0.48, cy - 0.45 * radius, metal)
        canvas.disc(x, cy, radius, metal)
        canvas.disc(x, cy, 0.75 * radius, (240, 240, 235))
        canvas.disc(x + 0.5 * radius * np.cos(pea[index]), cy + 0.5 * radius * np.sin(pea[index]), 0.03, DARK)
        canvas.box(x + 0.02, cy - 1.02 * radius, x + 0.1, cy - 0.7 * radius, DARK)
        for number, lean in enumerate(hidden if pressure > 0.1 else ()):
            along = (5 * now_s + number / 5) % 1
            start, reach = 0.06 + 0.008 * (lean - 3), 0.05 + 0.3 * along * pressure
            canvas.disc(x + start + 0.03 * (lean - 3) * along, cy - radius - reach, 0.012 + 0.035 * along, SMOKE)

    return Scene(sound, draw, x, **surroundings(rng, 0.9))


def _blown(t: np.ndarray, begins_s: list[float], ends_s: list[float]) -> np.ndarray:
    """0 to 1: breath pressure, with 20 ms attack and release."""
    return sum((np.clip(np.minimum(t - a, b - t) / 0.02, 0, 1) for a, b in zip(begins_s, ends_s, strict=True)), 0 * t)


def train(rng: Generator, duration_s: float) -> Scene:
    """A locomotive that passes again and again, sounding its horn.

    The pitch is f / (1 + v / c), with v the rate of change of the distance (`acoustics.moving`): it falls as the
    train passes. The horn is a chord of five, about that of a Nathan K5LA (D#4
    F#4 G#4 B4 D#5), each with harmonics k of amplitude 1 / k; below it the wheels.
    """
    t, speed, view_m, length_m = clock_of(duration_s), rng.uniform(15, 32), 44.0, 16.0
    way_m, away_m, side = view_m + length_m, rng.uniform(8, 14), rng.choice([-1, 1])
    start_m = rng.uniform(0.3, 0.5) * way_m
    pitch = 2 ** (rng.uniform(-2, 2) / 12)
    source = np.zeros(len(t))
    for f in (311.1, 370.0, 415.3, 493.9, 622.3):
        tone = np.exp(2j * np.pi * (pitch * f * t + rng.random()))
        source += (tone * (1 + tone * (1 / 2 + tone * (1 / 3 + tone * (1 / 4 + tone / 5))))).imag
    source += 0.6 * band_noise(rng, len(t), 60, 500) * (1 + 0.5 * np.sin(2 * np.pi * speed / 4 * t))
    gone_m = (start_m + speed * t) % way_m - way_m / 2  # position along the track, 0 in front of the viewer
    sound = moving(source, np.hypot(gone_m, away_m)) * np.clip((way_m / 2 - np.abs(gone_m)) / 3, 0, 1)
    ground, paint, stripe = rng.uniform(0.72, 0.85), color(rng), color(rng, saturation=0.5, value=0.95)
    metre = 1 / view_m

    def draw(canvas: Canvas, now_s: float) -> None:
        x = 0.5 + side * ((start_m + speed * now_s) % way_m - way_m / 2) * metre
        half, tall = length_m / 2 * metre, 0.2
        for sleeper in np.arange(0.02, 1, 0.06):
            canvas.box(sleeper, ground, sleeper + 0.025, ground + 0.025, (110, 80, 60))
        canvas.line([(0, ground), (1, ground)], 0.012, DARK)
        for wheel in (-0.75, -0.45, 0.45, 0.75):
            canvas.disc(x + wheel * half, ground - 0.025, 0.025, DARK)
        canvas.box(x - half, ground - tall, x + half, ground - 0.035, paint)
        canvas.box(x - half, ground - 0.09, x + half, ground - 0.065, stripe)
        front = x + side * half
        canvas.shape([(front, ground - tall), (front + side * 0.03, ground - 0.035), (front, ground - 0.035)], paint)
        for window in (-0.6, -0.2, 0.2, 0.6):
            middle = x + window * half
            canvas.box(middle - 0.022, ground - 0.17, middle + 0.022, ground - 0.115, (190, 220, 235))
        canvas.box(x - 0.02, ground - tall - 0.025, x + 0.02, ground - tall, DARK)

    return Scene(sound, draw, 0.5 + side * gone_m * metre, **surroundings(rng, ground - 0.12))


def helicopter(rng: Generator, duration_s: float) -> Scene:
    """A hovering helicopter; each blade slaps as it passes.

    The blade-passing frequency is the number of blades times the revolutions per second (Lowson & Ollerhead 1969, "A
    theoretical study of helicopter rotor noise", J. Sound Vib. 9); slaps are derivatives of a Gaussian pressure
    pulse, and the rotor's noise swells with them. The turbine whines above.
    """
    t, blades, turns_hz = clock_of(duration_s), int(rng.integers(2, 5)), rng.uniform(4, 6.5)
    turned, width_s, scale = turns_hz * t + rng.uniform(), rng.uniform(2e-3, 4e-3), rng.uniform(0.8, 1.15)
    since_s = (((turned * blades + 0.5) % 1) - 0.5) / (turns_hz * blades)
    slap = -since_s / width_s * np.exp(0.5 - (since_s / width_s) ** 2 / 2)
    swell = (0.5 + 0.5 * np.cos(2 * np.pi * turned * blades)) ** 2
    sound = slap + 0.35 * (0.2 + swell) * band_noise(rng, len(t), 80, 900)
    sound += 0.02 * np.sin(2 * np.pi * rng.uniform(1800, 3200) * t)
    x0, y0, paint, sway = rng.uniform(0.4, 0.55), rng.uniform(0.4, 0.55), color(rng), rng.uniform(0, 6, 2)

    def draw(canvas: Canvas, now_s: float) -> None:
        x, y = x0 + 0.05 * np.sin(1.3 * now_s + sway[0]), y0 + 0.04 * np.sin(1.9 * now_s + sway[1])

        def at(across: float, up: float) -> tuple[float, float]:
            return x + scale * across, y - scale * up

        canvas.shape([at(0.1, 0.05), at(0.42, 0.06), at(0.42, 0.03), at(0.1, -0.06)], paint)
        canvas.shape([at(0.38, 0.05), at(0.45, 0.16), at(0.45, 0.03)], paint)
        canvas.ellipse(x, y, 0.17 * scale, 0.12 * scale, paint)
        canvas.ellipse(*at(-0.08, 0.02), 0.075 * scale, 0.07 * scale, (190, 220, 235))
        canvas.line([at(-0.16, -0.18), at(0.14, -0.18)], 0.016, DARK)
        for leg in (-0.08, 0.07):
            canvas.line([at(leg, -0.1), at(leg, -0.18)], 0.014, DARK)
        canvas.line([at(0, 0.1), at(0, 0.18)], 0.025, DARK)
        turn = turned[min(round(now_s * SAMPLE_RATE), len(turned) - 1)]
        for blade in range(blades):  # seen from the side, and a little from below
            angle = 2 * np.pi * (turn + blade / blades)
            canvas.line([at(0, 0.18), at(0.36 * np.cos(angle), 0.18 + 0.025 * np.sin(angle))], 0.016, DARK)
        tail = 17 * now_s
        canvas.line([at(0.45 + s * 0.05 * np.cos(tail), 0.1 + s * 0.05 * np.sin(tail)) for s in (-1, 1)], 0.012, DARK)

    return Scene(sound, draw, x0, **surroundings(rng, 0.9))
